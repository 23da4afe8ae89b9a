"""Inner attack: the loss of images that are perturbed against the model as it is."""
