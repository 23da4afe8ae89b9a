"""Training of the student on queries and their answers."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import SlidingWindow, cropped, padded_to
from medseg_attack.numerics.log_odds import divergence
from medseg_attack.training.augment import crc
from medseg_attack.training.extraction.answers import Exchange
from medseg_attack.training.extraction.options import Answers, Extraction
from medseg_attack.training.losses import training_loss
from medseg_attack.types import LogOdds, Task

PIECES = 10  # of a training, after each of which progress is reported


def fit(plan: Extraction, student: SegModel, exchanges: Sequence[Exchange], device: torch.device) -> Iterator[float]:
    """Trains with AdamW along a cosine; yields the mean loss of each tenth of the steps.

    A batch has slices or scans of one shape, drawn with replacement, so that few queries fill one, too. A student with
    a window learns from parts of that size; from volumes, which belong to a whole slice or scan, from all its windows.
    """
    student.train()
    window = student.window
    if isinstance(student.net, SlidingWindow) and plan.answers == "volumes":
        student.net.training, window = False, None  # its own flag alone: the network within is trained
    optimiser = torch.optim.AdamW(student.parameters(), lr=plan.lr)
    loss_of = _loss("masks" if plan.hardened else plan.answers, student, exchanges)
    shapes: dict[tuple[int, ...], list[Exchange]] = {}
    for exchange in exchanges:
        shapes.setdefault(part_shape(window, exchange.image.shape[1:]), []).append(exchange)
    rng = torch.Generator().manual_seed(crc(plan.seed, "batches"))
    losses: list[Tensor] = []
    piece = math.ceil(plan.steps / PIECES)
    for step in range(plan.steps):
        first = exchanges[int(torch.randint(len(exchanges), (), generator=rng))]
        shape = part_shape(window, first.image.shape[1:])
        places = torch.randint(len(shapes[shape]), (plan.batch_size,), generator=rng).tolist()
        batch = [part_of(shapes[shape][place], shape, student.task, rng) for place in places]
        image, margins = padded_to(torch.stack([each.image for each in batch]).to(device), window or shape)
        answer = torch.stack([each.answer for each in batch]).to(device)
        for group in optimiser.param_groups:
            group["lr"] = plan.lr * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        loss = loss_of(cropped(student(image), margins, shape), answer)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.detach())
        if len(losses) == piece or step == plan.steps - 1:
            yield float(torch.stack(losses).mean())
            losses = []


def part_shape(window: Sequence[int] | None, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the part of a query that is learned from at a time: a window, as far as the query reaches."""
    return tuple(map(min, shape, window or shape))


def part_of(exchange: Exchange, shape: tuple[int, ...], task: Task, rng: torch.Generator) -> Exchange:
    """A random part of a query and of its answer, two in three around a voxel of an organ; all of it, if that fits."""
    room = [n - of_part for n, of_part in zip(exchange.image.shape[1:], shape, strict=True)]
    if not any(room):
        return exchange
    starts = [int(torch.randint(n + 1, (), generator=rng)) for n in room]
    organs = (exchange.answer[list(task.scored)] > 0).any(0).nonzero()
    if len(organs) and float(torch.rand((), generator=rng)) < 2 / 3:
        voxel = organs[int(torch.randint(len(organs), (), generator=rng))].tolist()
        starts = [min(max(at - n // 2, 0), most) for at, n, most in zip(voxel, shape, room, strict=True)]
    part = (slice(None), *(slice(start, start + n) for start, n in zip(starts, shape, strict=True)))
    return Exchange(exchange.image[part], exchange.answer[part])


def soft_disagreement(log_odds: LogOdds, answer: LogOdds) -> Tensor:
    """1 - 2 pq / (pp + qq) of the probabilities of two answers, summed over the batch; mean over classes.

    Squares below the line make it least where both are equal, also between 0 and 1. A mean over pixels alone is mostly
    one over background, and small organs are learned late.

    >>> q = torch.tensor([0.1, 0.7]).logit().view(1, 1, 2)
    >>> soft_disagreement(q, q).item()
    0.0
    """
    p, q = (x.sigmoid().transpose(0, 1).flatten(1) for x in (log_odds, answer))
    both, own, other = (p * q).sum(1), p.square().sum(1), q.square().sum(1)
    return (1 - (2 * both + 1) / (own + other + 1)).mean()


def _loss(kind: Answers, student: SegModel, exchanges: Sequence[Exchange]) -> Callable[[LogOdds, Tensor], Tensor]:
    """The loss between the student's log-odds and answers of that kind."""
    if kind == "probabilities":
        exclusive = student.task.exclusive
        return lambda log_odds, answer: (
            divergence(answer, log_odds, exclusive).mean() + soft_disagreement(log_odds, answer)
        )
    if kind == "masks":
        return training_loss("dice_ce", student.task)
    mean = torch.stack([each.answer for each in exchanges]).mean(0).clamp(min=1)

    def of_volumes(log_odds: LogOdds, answer: Tensor) -> Tensor:
        """Squared error of the soft volume of each class, in its mean volume."""
        return ((log_odds.sigmoid().flatten(2).sum(2) - answer) / mean.to(answer)).square().mean()

    return of_volumes
