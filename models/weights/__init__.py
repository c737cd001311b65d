"""Weights on their way in: sources in several file formats, one loader that shards them."""
