"""Functions of tensors alone: no attack, no model and no file is read here."""
