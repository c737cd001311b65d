"""How a vision-language model is put together: configuration, processing, prompts, positions."""
