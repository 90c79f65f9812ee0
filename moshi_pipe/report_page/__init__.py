"""A page and a table about runs: ``moshi-pipe report``."""
