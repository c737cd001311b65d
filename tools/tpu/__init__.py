"""Compiling this project's programs for TPUs with the real compiler, on a machine that has none."""
