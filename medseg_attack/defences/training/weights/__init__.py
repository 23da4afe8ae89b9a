"""Training rules that change which weights a network has."""
