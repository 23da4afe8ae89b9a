"""Factors of the model: the same number for all scans, so that models are what is correlated."""

import torch
from torch import Tensor

from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Batch


@register("parameters", kind="factor")
def parameters(scan: Batch, model: SegModel) -> Tensor:
    """Number of the network's weights: arXiv 2401.11224 sees no strong relation to an attack's success."""
    n = sum(parameter.numel() for parameter in model.parameters())
    return torch.full((len(model.task.classes),), float(n), dtype=torch.float64)
