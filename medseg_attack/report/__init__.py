"""What people look at: tables for the terminal, markdown, LaTeX and CSV, and curves."""
