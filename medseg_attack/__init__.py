"""How far does a perturbation that nobody can see move a medical segmentation model, organ by organ?"""

__version__ = "0.1.0"
