"""Several models as one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medseg_attack.defences.models.around import AroundModels, as_model, members
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import read_card
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import log_odds_of_votes, mean_logits, mean_probabilities
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds, Task

FUSIONS = ("probabilities", "logits", "votes")


@register("ensemble", kind="model", trained=True, wraps="models", gathers=True)
def ensemble(
    task: Task,
    models: tuple[Any, ...] = (),
    *,
    fuse: str = "probabilities",
    weights: tuple[float, ...] = (),
    by_dice: bool = False,
) -> SegModel:
    """Several models as one: `ensemble('a', 'b', 'c')`, their mean or their vote, pixel by pixel.

    Args:
        models: names or folders of checkpoints, or specs that bring their weights.
        fuse: "probabilities" or "logits" are averaged (of an exclusive task before the softmax), or "votes" counted,
            whose gradient is that of the mean probability where an attack knows the defence.
        weights: of the models, above 0; (): all the same.
        by_dice: whether they weigh as much as the mean validation Dice on their cards.

    Raises:
        InputError: a model is not trained or of another task, or the weights do not fit the models.
    """
    if fuse not in FUSIONS:
        raise InputError(f"expected fuse of ensemble among {', '.join(FUSIONS)}, got {fuse!r}; write one of them")
    if by_dice and weights:
        raise InputError(f"expected weights or by_dice for ensemble, got both ({weights}); drop one")
    shares = tuple(map(_dice, models)) if by_dice else weights or (1.0,) * max(len(models), 1)
    if len(shares) != max(len(models), 1) or not all(0 < share < math.inf for share in shares):
        raise InputError(
            f"expected a weight above 0 for each of the {len(models)} models of ensemble, got {shares}; write as many"
        )
    return as_model(Ensemble(members(models, task, "ensemble"), fuse, shares))


class Ensemble(AroundModels):
    """The network of `ensemble`."""

    def __init__(self, models: Sequence[SegModel], fuse: str, weights: Sequence[float]) -> None:
        super().__init__(models)
        self.fuse, self.weights = fuse, [weight / sum(weights) for weight in weights]

    @property
    def blocks_gradient(self) -> bool:
        return super().blocks_gradient or self.fuse == "votes"

    def forward(self, image: Image) -> LogOdds:
        models = self.models
        stacked = torch.stack([model(image) for model in models])
        weights = stacked.new_tensor(self.weights)
        if self.fuse == "votes":
            votes = torch.stack([model.decide(each) for model, each in zip(models, stacked, strict=True)])
            hard = log_odds_of_votes(votes, weights, stacked)
            slope = 0 * stacked[0] if self.backward == "own" else mean_probabilities(stacked, weights)
            return straight_through(hard, slope)
        if len(models) == 1:
            return stacked[0]
        if self.fuse == "logits":
            return mean_logits(stacked, weights, models[0].task.exclusive)
        return mean_probabilities(stacked, weights)


def _dice(reference: Any) -> float:
    card = read_card(Path(reference)) if isinstance(reference, str) and reference else {}
    known = [score for score in (card.get("val_dice") or {}).values() if score is not None]
    if not known:
        raise InputError(
            f"expected a checkpoint with a validation Dice for by_dice, got {reference!r}; write weights= instead"
        )
    return float(sum(known) / len(known))
