"""Networks of others: one kind of file or folder per module."""
