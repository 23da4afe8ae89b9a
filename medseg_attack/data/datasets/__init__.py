"""Data sets: one reader per file; `prepare --format` names it."""
