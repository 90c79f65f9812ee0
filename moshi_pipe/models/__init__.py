"""What codecs and language models are: specs, protocols, checkpoints. No torch at import."""
