"""What a codec and a language model are: specs, protocols, checkpoints, tokenizer. No torch at import."""
