"""Makes the small speaking model of moshi-pipe from nothing; see README.md.

``domain`` says what it can talk about, ``espeak`` and ``conversation`` make the recordings,
``codec_*`` and ``lm_*`` train, ``export`` writes a checkpoint in the released layout. Nothing in
the core imports this package.
"""
