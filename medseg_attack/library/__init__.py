"""The functions that `import medseg_attack` offers: what the command line does, with tensors and tables."""
