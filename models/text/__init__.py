"""Text in and out of a model: tokenizer, chat template, incremental detokeniser, stop strings. Nothing here imports jax."""
