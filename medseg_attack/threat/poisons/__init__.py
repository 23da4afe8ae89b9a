"""Changes of training data: triggers with wanted masks, false masks, and noise that leaves nothing to learn."""
