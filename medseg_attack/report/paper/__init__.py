"""Figures and LaTeX tables for papers, as wide as a column, which `medattack figure` writes. No torch in here."""
