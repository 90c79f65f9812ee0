"""Moshi and Mimi on MLX, as a backend of moshi-pipe."""
