"""A detector of a model: fitted, calibrated, scored on runs, and asked about new scans."""
