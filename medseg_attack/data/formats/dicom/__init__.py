"""DICOM: series, labels on them, and perturbed copies."""
