"""Reports for people: tables for the terminal, markdown, LaTeX and CSV, curves and pictures."""
