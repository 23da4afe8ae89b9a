"""Losses that training minimises: MONAI's and torch's, of log-odds. No objectives: these average over a batch."""

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.defences.training.base import Criterion as Loss
from medseg_attack.errors import InputError, nearest
from medseg_attack.types import Task

LOSSES = ("dice_focal", "dice_ce", "dice", "focal", "bce", "ce")


def training_loss(name: str, task: Task) -> Loss:
    """The loss of that name for a task.

    Dice pools over the batch, so that a slice without an organ does not count as a missed one. Dice and focal read
    log-odds, one class against the rest, whose sigmoid is the softmax's probability; `ce` is one decision per pixel
    of an exclusive task, and `bce` for any other.

    Raises:
        InputError: there is no such loss.
    """
    from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss

    entropy = _cross_entropy if task.exclusive else functional.binary_cross_entropy_with_logits
    dice: Loss = DiceLoss(sigmoid=True, batch=True)
    match name:
        case "dice_focal":
            loss: Loss = DiceFocalLoss(sigmoid=True, batch=True)
        case "dice_ce":
            return lambda log_odds, target: dice(log_odds, target) + entropy(log_odds, target)
        case "dice":
            loss = dice
        case "focal":
            loss = FocalLoss()
        case "bce":
            loss = functional.binary_cross_entropy_with_logits
        case "ce":
            loss = entropy
        case _:
            raise InputError(f"unknown training loss: expected one of them, got {name!r}; {nearest(name, LOSSES)}")
    return loss


def _cross_entropy(log_odds: Tensor, target: Tensor) -> Tensor:
    """`log p = logsigmoid(l)` is the log of the softmax that the log-odds came from."""
    return -(functional.logsigmoid(log_odds) * target).sum(1).mean()


def finite(loss: float, epoch: int) -> float:
    """The loss, unless training has failed.

    Raises:
        InputError: it is not a number.
    """
    if torch.isfinite(torch.tensor(loss)):
        return loss
    raise InputError(
        f"expected a finite training loss, got {loss} in epoch {epoch}; lower --lr or use another --loss, "
        "with another --out"
    )
