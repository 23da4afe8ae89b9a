"""The least change that succeeds."""
