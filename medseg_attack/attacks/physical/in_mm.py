"""Balls whose size is a length in mm: the spacing of their cases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.types import Ball, Flow, PerSample


@dataclass(frozen=True)
class Spaced:
    """What a ball in mm knows of its cases."""

    spacing_mm: tuple[tuple[float, ...], ...] = ()

    def mm(self, like: Tensor) -> Float[Tensor, "b n *ones"]:
        return pixel_mm(self.spacing_mm, like)

    def at(self, index: Tensor) -> "Spaced":
        return replace(self, spacing_mm=tuple(self.spacing_mm[i] for i in index.tolist()))


def pixel_mm(spacing: Sequence[Sequence[float]], like: Tensor) -> Float[Tensor, "b n *ones"]:
    """The size of a pixel of each sample along each axis, 1 mm where no spacing is known."""
    axes = like.ndim - 2
    rows = spacing or [[1.0] * axes] * len(like)
    return torch.tensor(rows, device=like.device, dtype=like.dtype).view(len(rows), axes, *(1 for _ in range(axes)))


def longest(flow: Flow) -> PerSample:
    """The length of the longest displacement."""
    return flow.square().sum(1).sqrt().flatten(1).amax(1)


def needs_length(ball: Ball, attack: str, example: str) -> None:
    """Refuses a ball in which nothing may move."""
    if not hasattr(ball, "length"):
        raise InputError(f"expected a ball in which anatomy may move for {attack}, got {ball}; write {example}")
