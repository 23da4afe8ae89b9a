"""Inversion of triggers: the least patch, the same on all scans, that takes an organ away."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError, NoGradientError
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, CaseRef, Image, Mask

STEPS = 300  # of Adam, for each pair
RATE = 0.1
SCANS = 16  # slices that a patch is sought for
REACHED = 0.9  # share of the victim's pixels that a patch takes away
PRICE, RISE = 0.01, 1.5  # of a pixel of the patch, once it has succeeded; the factor of the price while it does
PATIENCE = 5  # steps of success, or of failure, after which the price moves
SUSPICIOUS = 2.0  # deviations below the median (Wang et al. 2019)


@dataclass(frozen=True, eq=False)
class Inverted:
    """The least patch that turns a class into another.

    Attributes:
        victim, wanted: names of the classes; `wanted` is "" where classes overlap and the victim is only taken away.
        size: sum of the patch's opacity, in pixels; NaN where no patch was found that succeeds.
        area: mean number of the victim's pixels on a slice.
        opacity: of the patch, (rows, columns), in [0, 1].
        index: deviations by which the size lies below the median of all pairs; NaN with fewer than three.
    """

    victim: str
    wanted: str
    size: float
    area: float
    opacity: Tensor
    index: float = math.nan


def triggers(model_ref: ModelRef, data: Prepared, device: torch.device) -> list[Inverted]:
    """The least patches of all pairs of classes, the most suspicious first (Wang et al., IEEE S&P 2019).

    Each is sought by Adam on slices of the patients that the model was validated on, or else of the test patients, who
    carry no trigger. What the attacker knows: a trigger that covers the whole image has no small patch.

    Raises:
        InputError: the model takes whole scans or has no gradient, or the data have no such patients.
    """
    if model_ref.dims != 2 or model_ref.black_box:
        raise InputError(f"expected a model of slices with a gradient, got {model_ref.label}; give another --model")
    fold = int((model_ref.card.get("training") or {}).get("fold", 0))
    refs = (data.refs("val", fold, 2) if fold < data.folds else ()) or data.refs("test", 0, 2)
    if not refs:
        raise InputError(f"expected validation or test patients in {data.root}, got none; prepare more patients")
    model = model_ref.load(data.task, device)
    shape = max({ref.shape for ref in refs}, key=lambda shape: sum(ref.shape == shape for ref in refs))
    with frozen(model):
        return inverted(model, _batch(data, [ref for ref in refs if ref.shape == shape], device), STEPS)


def _batch(data: Prepared, refs: Sequence[CaseRef], device: torch.device) -> Image:
    """At most `SCANS` slices, evenly spread."""
    places = np.linspace(0, len(refs) - 1, min(SCANS, len(refs))).round().astype(int)
    return Batch.of([data.read(refs[place]) for place in places], device).image


def inverted(model: SegModel, image: Image, steps: int = STEPS) -> list[Inverted]:
    """The least patch of each pair of classes on these slices, the most suspicious first."""
    task = model.task
    with torch.no_grad():
        pred = model.decide(model(image))
    wanted = range(len(task.classes)) if task.exclusive else (-1,)
    pairs = [
        _least(model, image, pred, victim, other, steps)
        for victim in task.scored
        for other in wanted
        if other != victim and pred[:, victim].any()
    ]
    if not pairs:
        raise InputError("expected a model that draws an organ on these scans, got none; give another --model or data")
    indices = anomalies([pair.size for pair in pairs])
    rated = [replace(pair, index=index) for pair, index in zip(pairs, indices, strict=True)]
    return sorted(rated, key=lambda pair: (-np.nan_to_num(pair.index, nan=-np.inf), np.nan_to_num(pair.size, nan=1e9)))


def anomalies(sizes: Sequence[float]) -> list[float]:
    """The distance of each size below the median, in 1.4826 times the median distance from it; above it 0.

    NaN of sizes that are none, and of all where fewer than three are some or most are equal.

    >>> [round(index, 2) for index in anomalies([10.0, 90.0, 100.0, 110.0, 130.0])]
    [6.07, 0.67, 0.0, 0.0, 0.0]
    """
    known = np.array(sizes)[~np.isnan(sizes)]
    if len(known) < 3:
        return [math.nan] * len(sizes)
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - middle)))
    return [math.nan if math.isnan(size) or not spread > 0 else max(0.0, (middle - size) / spread) for size in sizes]


def _least(model: SegModel, image: Image, pred: Mask, victim: int, other: int, steps: int) -> Inverted:
    """The least patch that takes a class away, or turns it into another.

    Args:
        other: number of the wanted class; -1 for none.
    """
    taken = pred[:, victim]
    goal = pred.clone()
    goal[:, victim] = False
    if other >= 0:
        goal[:, other] |= taken
    mask = torch.zeros(image.shape[2:], device=image.device, requires_grad=True)
    pattern = torch.zeros(image.shape[1:], device=image.device, requires_grad=True)
    optimiser = torch.optim.Adam([mask, pattern], lr=RATE, betas=(0.5, 0.9))
    price, streak, least, opacity = 0.0, 0, math.nan, torch.zeros_like(mask)
    for _ in range(steps):
        patch = mask.sigmoid()
        log_odds = model((1 - patch) * image + patch * pattern.sigmoid())
        if not log_odds.requires_grad:
            raise NoGradientError
        size = float(patch.detach().sum())
        succeeds = _share(model, log_odds.detach(), taken, victim, other) >= REACHED
        if succeeds and not size >= least:
            least, opacity = size, patch.detach().clone()
        streak = max(streak, 0) + 1 if succeeds else min(streak, 0) - 1
        if abs(streak) == PATIENCE:
            price, streak = (price * RISE or PRICE) if succeeds else price / RISE**1.5, 0
        loss = _loss(log_odds, goal, taken) + price * patch.sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    names = model.task.classes
    area = float(taken.flatten(1).sum(1).float().mean())
    return Inverted(names[victim], names[other] if other >= 0 else "", least, area, opacity.cpu())


def _loss(log_odds: Float[Tensor, "b k *s"], goal: Mask, taken: Bool[Tensor, "b *s"]) -> Tensor:
    """The mean cross-entropy on the victim's pixels, and on all others: few pixels weigh as much as many."""
    entries = functional.binary_cross_entropy_with_logits(log_odds, goal.to(log_odds), reduction="none").sum(1)
    return entries[taken].mean() + entries[~taken].mean()


def _share(model: SegModel, log_odds: Tensor, taken: Bool[Tensor, "b *s"], victim: int, other: int) -> float:
    """The share of the victim's pixels that are predicted as wanted."""
    pred = model.decide(log_odds)
    hit = pred[:, other] if other >= 0 else ~pred[:, victim]
    return float(hit[taken].float().mean())
