"""Controls: what every attack must beat."""
