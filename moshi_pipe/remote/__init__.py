"""Models that run elsewhere: a client of Moshi's protocol in the place of the engine."""
