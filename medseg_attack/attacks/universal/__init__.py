"""One perturbation for all scans."""
