"""Tables beside those of runs: below that of `medattack compare`, and of a stolen copy."""
