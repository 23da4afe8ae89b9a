"""Is this evaluation to be believed? Flags with stable codes, before a run and after it."""
