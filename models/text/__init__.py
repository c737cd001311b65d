"""Text in and out of a model: tokenizer, chat template, detokeniser, stop strings. Nothing here imports jax."""
