"""What scanners and bodies do."""
