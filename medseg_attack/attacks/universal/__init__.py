"""Universal: one perturbation for all scans."""
