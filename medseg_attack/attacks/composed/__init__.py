"""Made of other attacks."""
