"""Factors of the model: each has one value for all scans of a model, so that its correlation is one over models."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Batch


@register("parameters", kind="factor")
def parameters(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Number of the network's weights: arXiv 2401.11224 sees no strong relation to an attack's success."""
    return _of_all(model, sum(parameter.numel() for parameter in model.parameters()))


@register("classes", kind="factor")
def classes(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Number of classes that are scored: more of them make a network easier to attack (Ma et al. 2021)."""
    return _of_all(model, len(model.task.scored))


@register("training_patients", kind="factor")
def training_patients(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Number of patients that the network was trained on; NaN of one that was trained elsewhere."""
    known = card.get("training_patients")
    return _of_all(model, torch.nan if known is None else known)


@register("pretrained", kind="factor")
def pretrained(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """1: the training began from other data's weights of the encoder; 0: from random ones (Bortsova et al. 2021).

    NaN of a network that was trained elsewhere.
    """
    training = card.get("training") or {}
    return _of_all(model, float(bool(training["encoder_weights"])) if "encoder_weights" in training else torch.nan)


def _of_all(model: SegModel, value: float) -> Tensor:
    return torch.full((len(model.task.classes),), float(value), dtype=torch.float64)
