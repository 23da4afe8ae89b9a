"""Physical: changes that scanners and bodies make."""
