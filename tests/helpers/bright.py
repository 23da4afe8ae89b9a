"""Scans with one organ that is brighter than all else, in NIfTI, and networks in Python that find it by a threshold."""

import json
from pathlib import Path

import nibabel
import numpy as np

NETWORKS = '''
import torch
from torch import nn


class Net(nn.Module):
    """The organ is what is brighter than 0.4 of the window."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        z = self.a * (x - 0.4)
        return torch.cat((-z, z), 1)


class OfBatch(Net):
    """Normalises by the mean of its batch, not of each image."""

    def forward(self, x):
        return super().forward((x - x.mean()) / x.std() * 0.2 + 0.4)


class Sigmoid(Net):
    """Ends in a sigmoid."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class Blind(Net):
    """Finds nothing anywhere."""

    def forward(self, x):
        return super().forward(0 * x)


class Root(torch.autograd.Function):
    """The identity, whose gradient is NaN on an image without any variation."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        flat = x.flatten(1)
        constant = (flat.amax(1) - flat.amin(1) < 0.2).view(-1, 1, 1, 1)
        return torch.where(constant, torch.nan, grad)


class NanGradient(Net):
    def forward(self, x):
        return super().forward(Root.apply(x))


class NanAnswer(Net):
    """Answers NaN on an image without any variation."""

    def forward(self, x):
        flat = x.flatten(1)
        constant = (flat.amax(1) - flat.amin(1) < 0.2).view(-1, 1, 1, 1)
        return torch.where(constant, torch.nan, super().forward(x))
'''


def write_bright(
    root: Path, *, patients: int = 3, slices: int = 5, channel: str = "MRI", flat_slice: bool = False
) -> Path:
    """Decathlon scans of 40 x 40 pixels with values from 10 to 90, and `nets.py` beside them.

    Args:
        channel: what dataset.json calls the channel; "CT" makes the values HU.
        flat_slice: whether the first slice of each scan has no variation at all.
    """
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for n in range(patients):
        rng = np.random.default_rng(n)
        truth = np.zeros((40, 40, slices), np.uint8)
        for z in range(1, slices - 1):
            truth[8 : 8 + 6 * z, 8 : 20 + n, z] = 1
        image = (truth * 60 + rng.integers(10, 30, truth.shape)).astype(np.int16)
        if flat_slice:
            image[:, :, 0] = 20
        for name, array in (("imagesTr", image), ("labelsTr", truth)):
            file = root / name / f"p{n}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.diag((1, 1, 5.0, 1.0))), file)
    labels = {"background": 0, "organ": 1}
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": channel}, "labels": labels}))
    (root / "nets.py").write_text(NETWORKS)
    return root
