"""Answers of a victim as a thief gets them: whole, rounded, poisoned, or as masks and volumes alone."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.log_odds import without_nan
from medseg_attack.training.extraction.options import Extraction
from medseg_attack.types import Image

LEAST = 1e-7  # probability that an answer can have: float32 holds its log-odds
REVERSE = 0.2  # slope of the reverse sigmoid
SHORT = 1 - 1e-4  # share of the way to a tie of two classes that a turned answer may go
NOTHING = 1e-6  # squared distance of two directions that rounding alone can make


@dataclass(frozen=True, eq=False)
class Exchange:
    """One query and its answer.

    Attributes:
        image: (c, *s), a slice or a whole scan.
        answer: log-odds (k, *s), a 0/1 mask of that shape, or the pixels of each class (k,).
    """

    image: Tensor
    answer: Tensor


def answered(plan: Extraction, victim: SegModel, image: Image, guess: SegModel | None = None) -> Tensor:
    """The part of the victim's answers that a thief gets, (b, k, *s) or (b, k); see `Exchange`.

    Args:
        guess: network that the owner imagines the thief to train; needed with `plan.mad`.
    """
    with frozen(victim), torch.no_grad():
        log_odds = without_nan(victim(image))
    if plan.answers == "probabilities":
        p = log_odds.sigmoid()
        p = poisoned_probabilities(p, plan.poisoning, victim.task.exclusive) if plan.poisoning else p
        if plan.mad and guess is not None:
            with frozen(guess), torch.no_grad():
                p = turned_probabilities(p, guess(image).sigmoid(), plan.mad, victim.task.exclusive)
        p = (p * 10**plan.digits).round() / 10**plan.digits if plan.digits else p
        return p.clamp(LEAST, 1 - LEAST).logit()
    mask = victim.decide(log_odds).to(image)
    return mask if plan.answers == "masks" else mask.flatten(2).sum(2)


def poisoned_probabilities(p: Tensor, strength: float, exclusive: bool) -> Tensor:
    """Probabilities that point a thief's gradient elsewhere and decide as before (Lee et al., arXiv 1806.00054).

    The reverse sigmoid takes `strength * (sigmoid(0.2 * logit(p)) - 0.5)` from p: what is nearly certain looks less so
    than what is likely. Below a strength of 1 each p stays on its side of 0.5. Classes that exclude each other are
    scaled to a sum of 1 again; a pixel whose largest class would change keeps its probabilities.

    Args:
        p: (b, k, *s).
        strength: from 0 to below 1.

    >>> p = torch.tensor([0.001, 0.4, 0.6, 0.999]).view(1, 1, 4)
    >>> [round(x, 2) for x in poisoned_probabilities(p, 0.7, False).flatten().tolist()]
    [0.21, 0.41, 0.59, 0.79]
    """
    q = p - strength * ((REVERSE * p.clamp(LEAST, 1 - LEAST).logit()).sigmoid() - 0.5)
    if not exclusive:
        return q
    q = q / q.sum(1, keepdim=True)
    return torch.where(q.argmax(1, keepdim=True) == p.argmax(1, keepdim=True), q, p)


def turned_probabilities(p: Tensor, guess: Tensor, budget: float, exclusive: bool) -> Tensor:
    """Probabilities that turn the thief's gradient furthest and decide as before: MAD-argmax.

    Orekondy et al. (ICLR 2020, arXiv 1906.10908) maximise the distance between the directions of the thief's gradients
    by the given and by the true answer, within an L1 ball around the true one. The gradient of a pixel by the thief's
    last layer is (guess - answer) times its features, so the direction needs nothing but the thief's own answer. Here,
    that of an untrained network stands for it. As in the paper the answer goes towards a corner of the simplex, as far
    as the ball and the decision allow; the corner is the one that turns most there. Classes that do not exclude each
    other are turned one by one. Unlike in the paper each pixel is turned alone, and by the last layer alone.

    Args:
        p: of the victim, (b, k, *s).
        guess: of the thief's network, of that shape.
        budget: L1 distance of each pixel's answer from `p`, from 0 to 2.

    >>> p, guess = torch.tensor([0.8, 0.2]).view(1, 2, 1), torch.tensor([0.7, 0.3]).view(1, 2, 1)
    >>> [round(x, 2) for x in turned_probabilities(p, guess, 0.4, True).flatten().tolist()]
    [0.6, 0.4]
    """
    if not exclusive:
        p, guess = (torch.stack((q, 1 - q), 1) for q in (p, guess))
    first, usual = p.argmax(1, keepdim=True), functional.normalize(p - guess, dim=1)
    result, furthest = p, torch.full_like(p[:, :1], NOTHING)
    for k in range(p.shape[1]):
        way = -p
        way[:, k] += 1
        gap = p.amax(1, keepdim=True) - p[:, k : k + 1]
        free = torch.where(first == k, 1.0, SHORT * gap / (1 + gap))
        in_ball = budget / way.abs().sum(1, keepdim=True).clamp(min=LEAST)
        q = p + torch.minimum(free, in_ball).clamp(max=1) * way
        turn = (functional.normalize(q - guess, dim=1) - usual).square().sum(1, keepdim=True)
        is_better = (turn > furthest) & (q.argmax(1, keepdim=True) == first)
        result, furthest = torch.where(is_better, q, result), torch.where(is_better, turn, furthest)
    return result if exclusive else result[:, 0]


def hard(answer: Tensor, exclusive: bool) -> Tensor:
    """The 0/1 masks that log-odds (b, k, *s) stand for."""
    if not exclusive:
        return (answer >= 0).to(answer)
    return torch.zeros_like(answer).scatter_(1, answer.argmax(1, keepdim=True), 1.0)
