"""A student that learns from the answers of a victim to a counted number of queries, and never from a true mask."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.errors import InputError, plural, require
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow, cropped, padded_to
from medseg_attack.numerics.log_odds import divergence, without_nan
from medseg_attack.runtime import deterministic
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.storage.locks import locked
from medseg_attack.storage.paths import require_outside
from medseg_attack.training.augment import TrainingData, crc
from medseg_attack.training.loop import begun, drawing, require_same
from medseg_attack.training.losses import finite, training_loss
from medseg_attack.training.options import Options, label, resolve
from medseg_attack.types import CaseRef, Image, LogOdds, Task

Answers: TypeAlias = Literal["probabilities", "masks", "volumes"]
Selection: TypeAlias = Literal["random", "k_centre"]
QUERIES = "queries.json"
ANSWERS = "answers.safetensors"  # those that were given so far, so that nothing is asked twice after a kill
LEAST = 1e-7  # probability that an answer can have: float32 holds its log-odds
REVERSE = 0.2  # slope of the reverse sigmoid
SHORT = 1 - 1e-4  # share of the way to a tie of two classes that a turned answer may go
NOTHING = 1e-6  # squared distance of two directions that rounding alone can make
KEPT = 25  # answers, after which they are written
UNITS = {2: "slice", 3: "scan"}  # that are asked about, by their dimensions
PIECES = 10  # of a training, after each of which progress is reported


@dataclass(frozen=True)
class Extraction:
    """The thief's means.

    Attributes:
        model: spec of the student, which takes slices or whole scans as the victim does.
        queries: slices that the victim is asked about, whole scans of a 3-D one, 1 or more.
        answers: probabilities of each pixel, hard masks, or the volume of each class in the slice or scan alone.
        digits: of the probabilities that the victim gives away; 0: all.
        selection: of the queries: at random, or each as far as can be from those before (`k_centre`).
        poisoning: strength of the reverse sigmoid that the victim's probabilities go through, from 0 to below 1.
        mad: L1 distance from a pixel's probabilities within which the victim turns the thief's gradient, from 0 to 2.
        hardened: whether the thief keeps nothing of probabilities but the decision that they stand for.
        steps: of the optimiser, 1 or more.
    """

    model: str = "unet_small"
    queries: int = 100
    answers: Answers = "probabilities"
    digits: int = 0
    steps: int = 1000
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    selection: Selection = "random"
    poisoning: float = 0.0
    hardened: bool = False
    mad: float = 0.0

    def __post_init__(self) -> None:
        require(self, queries=1, digits=0, steps=1, lr=1e-12, batch_size=2)
        if self.digits and self.answers != "probabilities":
            raise InputError(f"expected probabilities for --digits, got --answers {self.answers}; drop one of them")
        needing = {"--poisoning": self.poisoning, "--mad": self.mad, "--hardened": self.hardened}
        if self.answers != "probabilities" and (option := next(filter(needing.get, needing), "")):
            raise InputError(f"expected probabilities for {option}, got --answers {self.answers}; drop one of them")
        if not 0 <= self.poisoning < 1:
            raise InputError(f"--poisoning: expected a strength from 0 to below 1, got {self.poisoning:g}; write 0.7")
        if not 0 <= self.mad <= 2:
            raise InputError(f"--mad: expected an L1 distance from 0 to 2, got {self.mad:g}; write 0.5")
        if self.mad and self.poisoning:
            raise InputError("expected one rule to poison answers by, got --poisoning and --mad; drop one of them")

    @property
    def knowledge(self) -> Literal["", "native", "adaptive"]:
        """Knowledge that the thief has of a defence: "native" takes answers as they are; "" where there is none."""
        if not (self.digits or self.poisoning or self.mad):
            return ""
        return "adaptive" if self.hardened else "native"


@dataclass(frozen=True, eq=False)
class Exchange:
    """One query and its answer.

    Attributes:
        image: (c, *s), a slice or a whole scan.
        answer: log-odds (k, *s), a 0/1 mask of that shape, or the pixels of each class (k,).
    """

    image: Tensor
    answer: Tensor


def answered(
    victim: SegModel,
    image: Image,
    kind: Answers,
    digits: int = 0,
    poisoning: float = 0.0,
    mad: float = 0.0,
    guess: SegModel | None = None,
) -> Tensor:
    """The part of the victim's answers that a thief gets, (b, k, *s) or (b, k); see `Exchange`.

    Args:
        guess: network that the owner imagines the thief to train; needed with `mad`.
    """
    with frozen(victim), torch.no_grad():
        log_odds = without_nan(victim(image))
    if kind == "probabilities":
        p = log_odds.sigmoid()
        p = poisoned_probabilities(p, poisoning, victim.task.exclusive) if poisoning else p
        if mad and guess is not None:
            with frozen(guess), torch.no_grad():
                p = turned_probabilities(p, guess(image).sigmoid(), mad, victim.task.exclusive)
        p = (p * 10**digits).round() / 10**digits if digits else p
        return p.clamp(LEAST, 1 - LEAST).logit()
    mask = victim.decide(log_odds).to(image)
    return mask if kind == "masks" else mask.flatten(2).sum(2)


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


def refs_of(plan: Extraction, data: TrainingData, student: SegModel) -> list[CaseRef]:
    """The slices or scans of the proxy's training patients that are asked about, in the order of their choice.

    Args:
        student: before its training; `k_centre` compares queries by its deepest features.

    Raises:
        InputError: there are not so many.
    """
    refs = data.refs("train", 0, student.dims)
    if len(refs) < plan.queries:
        asked = plural(plan.queries, f"training {UNITS[student.dims]}")
        raise InputError(
            f"expected {asked} in {data.name} to ask about, got {len(refs)}; give --queries {len(refs)} or a larger "
            "--data"
        )
    order = torch.randperm(len(refs), generator=torch.Generator().manual_seed(crc(plan.seed, "queries")))
    if plan.selection == "random":
        return [refs[place] for place in order[: plan.queries].tolist()]
    device = next(student.parameters()).device
    features = torch.cat([deepest_features(student, data.read(ref).image[None].to(device)) for ref in refs])
    return [refs[place] for place in k_centres(features, plan.queries, int(order[0]))]


def deepest_features(model: SegModel, image: Image) -> Tensor:
    """The means of the channels of the last of the widest convolutions, (b, channels); over all windows."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    if not layers:
        raise InputError("expected a student with convolutions for k_centre, got one without; take --selection random")
    widest = max(layer.out_channels for layer in layers)
    last = [layer for layer in layers if layer.out_channels == widest][-1]
    kept: list[Tensor] = []
    hook = last.register_forward_hook(lambda layer, args, output: kept.append(output.flatten(2).mean(2)))
    try:
        with frozen(model), torch.no_grad():
            model(image)
    finally:
        hook.remove()
    return torch.stack(kept).mean(0)


def k_centres(features: Float[Tensor, "n d"], k: int, first: int) -> list[int]:
    """The places of k points, each the furthest from those before it (Gonzalez 1985): at most twice the least radius.

    >>> k_centres(torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.5]]), 3, 0)
    [0, 3, 4]
    """
    places, distance = [first], torch.full((len(features),), math.inf, device=features.device)
    while len(places) < k:
        distance = torch.minimum(distance, (features - features[places[-1]]).square().sum(1))
        distance[places] = -1.0  # points that are alike are taken once each
        places.append(int(distance.argmax()))
    return places


def _exchanges(
    plan: Extraction,
    victim: SegModel,
    guess: SegModel | None,
    data: TrainingData,
    refs: Sequence[CaseRef],
    folder: Path,
    device: torch.device,
) -> list[Exchange]:
    """The answers to all queries; those that an earlier start was given are read from the folder, not asked again."""
    file = folder / ANSWERS
    known = checkpoints.load_tensors(file) if file.is_file() else {}
    for number, ref in enumerate(refs):
        if str(number) in known:
            continue
        image = data.read(ref).image[None].to(device)
        answer = answered(victim, image, plan.answers, plan.digits, plan.poisoning, plan.mad, guess)
        answer = hard(answer, victim.task.exclusive) if plan.hardened else answer
        known[str(number)] = answer[0].cpu()
        if (number + 1) % KEPT == 0 or number + 1 == len(refs):
            checkpoints.save_tensors(file, known)
    return [Exchange(data.read(ref).image, known[str(number)]) for number, ref in enumerate(refs)]


class _Queries(Form):
    """The cases that a victim was asked about, in their order."""

    cases: list[str]


def read_queries(folder: Path) -> list[str]:
    """The ids of the cases that the victim of a finished copy was asked about, in their order.

    Raises:
        InputError: the list is absent or damaged.
    """
    cases: list[str] = read_json(folder / QUERIES, _Queries)["cases"]
    return cases


def extract(
    plan: Extraction, victim: SegModel, victim_hash: str, data: TrainingData, folder: Path, device: torch.device
) -> Iterator[float]:
    """Asks the victim, trains the student until `folder` is a checkpoint, and yields the loss of each tenth.

    Args:
        victim_hash: of the victim's weights.

    Raises:
        InputError: victim and student do not both take slices or both whole scans, the victim gets prompts, the folder
            holds something else, or the loss is not finite.
    """
    if victim.prompt:
        raise InputError(
            f"expected a victim without prompts, got one with a {victim.prompt}, which a thief does not have; name "
            "another --victim"
        )
    network = resolve(Options(plan.model, epochs=1, lr=plan.lr, batch_size=plan.batch_size, seed=plan.seed), data)
    plan = dataclasses.replace(plan, model=network.model)
    asked: dict[str, Any] = {**dataclasses.asdict(plan), "victim": victim_hash, "data": data.fingerprint}
    if data.root is not None:
        require_outside(folder, Path(data.options.get("source", data.root)))
    for name in ("selection", "poisoning", "hardened", "mad"):  # as in folders from before there were others
        if asked[name] == getattr(Extraction, name):
            del asked[name]
    with locked(folder):
        require_same(folder, asked)
        if is_checkpoint(folder):
            (folder / ANSWERS).unlink(missing_ok=True)  # of a process that was killed at its end
            return
        start = time.monotonic()
        with drawing(crc(plan.seed, "weights"), device):
            student = checkpoints.build_model(plan.model, data.task).to(device)
        if student.dims != victim.dims:
            example = "unet_small" if victim.dims == 2 else "'monai(UNet, window=(32, 64, 64))'"
            raise InputError(
                f"expected a copy of {UNITS[victim.dims]}s, which the victim takes, got {plan.model} of "
                f"{UNITS[student.dims]}s; write --model {example}"
            )
        first = data.refs("train", 0, student.dims)[0]  # `resolve` has refused data without one
        part = (slice(None), *(slice(n) for n in _part_shape(student.window, first.shape)))
        image, _ = padded_to(data.read(first).image[part][None].to(device), student.window or first.shape)
        checkpoints.require_trainable(student, plan.model, image)
        refs = refs_of(plan, data, student)
        with begun(folder, asked, ANSWERS):
            guess = None
            if plan.mad:
                with drawing(crc(plan.seed, "guess"), device):  # the owner does not know the thief's weights
                    guess = checkpoints.build_model(plan.model, data.task).to(device)
            exchanges = _exchanges(plan, victim, guess, data, refs, folder, device)
            write_json(
                folder / QUERIES, {"answers": plan.answers, "count": len(refs), "cases": [ref.id for ref in refs]}
            )
            with deterministic(device), drawing(crc(plan.seed, "noise"), device):
                for number, loss in enumerate(_fit(plan, student, exchanges, device), start=1):
                    finite(loss, number)
                    yield loss
            root = None if data.root is None else str(data.root)
            card = {
                "label": label(plan.model),
                "spec": plan.model,
                "dataset": {"name": data.name, "fingerprint": data.fingerprint, "path": root},
                "training": dataclasses.asdict(network),
                "extraction": asked,
                "seconds": time.monotonic() - start,
                "window": data.options.get("window"),
            }
            checkpoints.save(folder, student, card)
            (folder / ANSWERS).unlink(missing_ok=True)


def _fit(plan: Extraction, student: SegModel, exchanges: Sequence[Exchange], device: torch.device) -> Iterator[float]:
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
        shapes.setdefault(_part_shape(window, exchange.image.shape[1:]), []).append(exchange)
    rng = torch.Generator().manual_seed(crc(plan.seed, "batches"))
    losses: list[Tensor] = []
    piece = math.ceil(plan.steps / PIECES)
    for step in range(plan.steps):
        first = exchanges[int(torch.randint(len(exchanges), (), generator=rng))]
        shape = _part_shape(window, first.image.shape[1:])
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


def _part_shape(window: Sequence[int] | None, shape: Sequence[int]) -> tuple[int, ...]:
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
