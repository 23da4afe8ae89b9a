"""What an attacker wants to see, and when it counts as reached."""
