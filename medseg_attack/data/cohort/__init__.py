"""Who is a patient, which files are one thing, and what is done about a label that a scan lacks: for every reader."""
