"""The threat model: what an attacker may change (balls), climbs (objectives) and wants (goals)."""
