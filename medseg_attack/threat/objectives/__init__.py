"""What an attacker climbs."""
