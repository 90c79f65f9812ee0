"""Moshi and Mimi in Rust, as a backend of moshi-pipe."""
