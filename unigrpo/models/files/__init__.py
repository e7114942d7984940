"""Files of a checkpoint: folders, weights, tokenizer, vocabulary, config."""
