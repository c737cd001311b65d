"""Speech to text with Whisper: log-mel, audio encoder, text decoder with cross-attention (arXiv 2212.04356)."""
