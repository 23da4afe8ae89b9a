"""DICOM series: the choice of their labels, their reading, and what is noted of them."""
