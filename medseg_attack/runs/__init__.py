"""What is to be run, and what a run leaves on disk. No torch in here."""
