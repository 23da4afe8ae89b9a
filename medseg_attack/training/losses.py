"""Losses that training minimises: MONAI's and torch's, of log-odds. No objectives: these average over a batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
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


def finite(loss: float, epoch: int, gradients: Sequence[Tensor] = (), names: Sequence[str] = ()) -> float:
    """The mean loss of some steps, unless training has failed.

    Args:
        gradients: what `finite_gradients` said at each of these steps.
        names: of the weights, in that order.

    Raises:
        InputError: it is not a number, or a gradient was not.
    """
    for step, are_finite in enumerate(torch.stack([*gradients]).tolist() if gradients else (), start=1):
        if not are_finite[0]:  # the loss; behind it, its gradient by each of the weights
            break
        broken = [name for name, is_finite in zip(names, are_finite[1:], strict=True) if not is_finite]
        if broken:  # no later step mends the weights
            where = "all weights" if len(broken) == len(names) else f"{len(broken)} of {len(names)} weights"
            raise InputError(
                f"expected a finite gradient of the training loss, got NaN or infinity by {where}, the last of them "
                f"{broken[-1]}, from a finite loss in step {step} of epoch {epoch}; look behind that layer for an "
                "operation without a slope, such as sqrt or a division at 0, or lower --lr, with another --out"
            )
    if math.isfinite(loss):
        return loss
    raise InputError(
        f"expected a finite training loss, got {loss} in epoch {epoch}; lower --lr or use another --loss, "
        "with another --out"
    )


def finite_gradients(loss: Tensor, model: nn.Module) -> Tensor:
    """Whether a loss, then its gradient by each of the weights, is finite; on the device, without waiting for it."""
    gradients = (weight.grad for weight in model.parameters())
    checked = (loss.new_zeros(()) if gradient is None else gradient for gradient in gradients)
    # 0 times a finite number is 0, any other is NaN: a fifth of the time of isfinite() on each
    return torch.stack([loss.detach().isfinite(), *((0 * gradient).sum().isfinite() for gradient in checked)])
