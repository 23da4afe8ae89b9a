"""Loss: another loss of the images as they are."""
