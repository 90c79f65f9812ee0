"""What is measured of a conversation: pure functions of spans, words, tokens and samples."""
