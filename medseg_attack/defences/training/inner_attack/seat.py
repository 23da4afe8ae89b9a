"""Training that uses a batch more often where the loss is steeper."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.training.inner_attack.free import Free
from medseg_attack.errors import require
from medseg_attack.registry import register


@register("seat", kind="defence", cost="1 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Seat(Free):
    """Free training whose number of replays follows the size of the input gradient (Wang et al., MICCAI 2023).

    The size is the mean over an epoch of the gradient's absolute value. Where it has grown by more than `growth`, each
    batch is used once more; where it has fallen by as much below that, once less. The released code measures it after
    the loss was scaled for half precision, and rounds the step of the perturbation down, mostly to 0; here neither is
    done.

    Attributes:
        replays: optimiser steps for each batch at the beginning, from `fewest` to `most`.
        fewest: least number of replays, 1 or more.
        most: largest number of replays.
        every: epochs after which the number may change, 1 or more.
        growth: factor by which the gradient must grow, 1 or more.
        step_size: length of one step of the perturbation, as a share of the ball, 0 or more.

    Raises:
        InputError: a field is out of range.
    """

    replays: int = 2
    fewest: int = 2
    most: int = 5
    every: int = 3
    growth: float = 1.1

    def __post_init__(self) -> None:
        require(self, fewest=1, every=1, growth=1, step_size=0)
        require(self, replays=self.fewest, most=self.replays)

    def observe(self, grad: Tensor, state: dict[str, Tensor]) -> None:
        """Adds the size of a batch's gradient to the sum over the epoch: of the mean loss, so once for each image."""
        size = len(grad) * grad.detach().abs().mean()
        state["size"] = state.get("size", torch.zeros_like(size)) + size
        state["batches"] = state.get("batches", torch.zeros_like(size)) + 1

    def replays_now(self, state: dict[str, Tensor]) -> int:
        return int(state["replays"]) if "replays" in state else self.replays

    def end_epoch(self, epoch: int, state: dict[str, Tensor]) -> None:
        size, replays = state.pop("size") / state.pop("batches"), self.replays_now(state)
        threshold = state.setdefault("threshold", size)
        if epoch % self.every:
            return
        if size > self.growth * threshold and replays < self.most:
            replays, state["threshold"] = replays + 1, self.growth * size
        elif size < threshold / self.growth and replays > self.fewest:
            replays -= 1
        state["replays"] = torch.tensor(replays)
