"""A cluster inside one process, for scripts and tests: scheduler and gateway behind one port, and workers."""
