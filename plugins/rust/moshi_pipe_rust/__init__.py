"""Moshi and Mimi on candle, as a backend of moshi-pipe."""
