"""What an attacker may change, and by how much."""
