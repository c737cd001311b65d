"""Whole deployments: the front process (scheduler and gateway), and a cluster inside one process for scripts and tests."""
