"""The demo vision-language model: images made here, questions about them, and the training of what joins a frozen vision transformer and a frozen language model."""
