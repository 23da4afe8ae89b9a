"""Parts of a program's own, one of each kind, whose work is a function that a test gives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import medseg_attack as ma
from helpers.tensors import bright_model, squares
from medseg_attack.attacks.climbing import Climbing
from medseg_attack.certificates.base import Bound, Certificate
from medseg_attack.data.datasets.source import ScanFile, Source
from medseg_attack.data.formats.scan import Scan
from medseg_attack.defences.input_layers import GeometricDefence, InputDefence
from medseg_attack.defences.models.guarded import guarded
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.detectors.base import Detector
from medseg_attack.registry import register
from medseg_attack.registry.table import entries, known_as
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.poisons.base import Backdoor, Poison
from medseg_attack.types import Adversarial, Ball, Batch, Case, Image, LogOdds, Mask, Model, Setting, Task

Work = Callable[..., Any]
IMAGES, MASKS = squares(2)
CLEAN = 0.1 + 0.7 * squares(20)[1] + 0.1 * torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def restored() -> Iterator[None]:
    """The registry as it was before the test."""
    ma.names()
    names, known = dict(entries), dict(known_as)
    yield
    for table, before in ((entries, names), (known_as, known)):
        for key in table.keys() - before.keys():  # type: ignore[attr-defined]
            del table[key]  # type: ignore[attr-defined]


def new_attack(work: Work) -> None:
    @register("mine", kind="attack")
    @dataclass(frozen=True)
    class Own(Climbing):
        """An attack."""

        ball: Ball = Linf(0.1)

        def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
            result: Adversarial = work(image, target)
            return result


def attack(work: Work) -> Any:
    new_attack(work)
    return ma.attack(bright_model(), IMAGES.clone(), MASKS.clone(), "mine")


def objective(work: Work) -> Any:
    @register("mine", kind="objective")
    def mine(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        result: Tensor = work(log_odds, target)
        return result

    return ma.attack(bright_model(), IMAGES, MASKS, "pgd(steps=1, objective=mine)")


def ball(work: Work) -> Any:
    @register("mine", kind="ball")
    @dataclass(frozen=True)
    class Own(Linf):
        """A ball."""

        def project(self, x: Image, x0: Image) -> Image:
            result: Image = work(x, x0)
            return result

    return ma.attack(bright_model(), IMAGES, MASKS, "pgd(mine(0.1), steps=1)")


def metric(work: Work) -> Any:
    @register("mine", kind="metric")
    def mine(pred: Tensor, target: Tensor, spacing_mm: object) -> Tensor:
        result: Tensor = work(pred, target)
        return result

    return ma.score(bright_model(), IMAGES, MASKS, metrics=["mine"])


def goal(work: Work, model: Any = None, masks: Mask = MASKS) -> Any:
    @register("mine", kind="goal")
    @dataclass(frozen=True)
    class Own(Goal):
        """A goal."""

        def wanted(self, truth: Mask, setting: Setting) -> Mask:
            result: Mask = work(truth)
            return result

    return ma.attack(model or bright_model(), IMAGES, masks.clone(), "pgd(steps=1, objective=toward(bce, mine))")


def criterion(work: Work) -> Any:
    @register("mine", kind="criterion")
    @dataclass(frozen=True)
    class Own:
        """A criterion."""

        def away(self, pred: Mask, truth: Mask, task: Task) -> Tensor:
            result: Tensor = work(pred, truth)
            return result

        near = away

    # it is a column of every attack with a goal, not of its own alone
    return ma.attack(bright_model(), IMAGES, MASKS.clone(), "pgd(steps=1, objective=toward(bce, erase))")


def detector(
    work: Work, score: Work = lambda s: s[:, 0], learn: Work = lambda t: {}, spec: str = "any_of((mine, entropy))"
) -> Any:
    @register("mine", kind="detector")
    @dataclass(frozen=True)
    class Own(Detector):
        """A detector."""

        reason = "it says so"

        def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Tensor]:
            result: tuple[LogOdds, Tensor] = work(model, image)
            return result

        def score(self, statistics: Tensor, cases: Sequence[Case]) -> Tensor:
            result: Tensor = score(statistics)
            return result

        def learn(self, training: object) -> dict[str, Tensor]:
            result: dict[str, Tensor] = learn(training)
            return result

    images, clean = IMAGES.clone(), CLEAN.clone()
    known = clean, squares(20)[1]
    table = ma.detect(bright_model(), images, spec, training=known, calibration=known)
    assert torch.equal(images, IMAGES)  # the caller's images are as they were
    assert torch.equal(clean, CLEAN)
    return table


def certificate(work: Work, bounds: Work | None = None, changed: Work = lambda scan: iter([scan.image])) -> Any:
    @register("mine", kind="certificate")
    @dataclass(frozen=True)
    class Own(Certificate):
        """A certificate."""

        quantity, promise, default_radii = "Dice", "a promise", (0.5,)  # type: ignore[assignment]

        def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
            return 1

        def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None: ...

        def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Any:
            return work(scan.image)

        def bounds(self, observed: Any, scan: Batch, model: Model, radii: Sequence[float]) -> Any:
            return (bounds or bound)(scan, radii)

        def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
            result: Iterator[Image] = changed(scan)
            return result

        def refuted(self, observed: Any, elsewhere: Any, scan: Batch, model: Model, radius: float) -> str:
            return ""

    images = IMAGES.clone()
    table = ma.certify(bright_model(), images, MASKS, "mine", radii=[0.1, 0.2])
    assert torch.equal(images, IMAGES)
    return table


def bound(scan: Batch, radii: Sequence[float], **numbers: Any) -> list[Bound]:
    values: dict[str, Any] = {"clean": 0.9, "value": 0.8, "low": 0.5, **numbers}
    return [Bound.of(scan, "lesion", radius, **values) for radius in radii]


def input_defence(work: Work, back: Work | None = None) -> Any:
    base: Any = InputDefence if back is None else GeometricDefence

    @register("mine", kind="defence")
    @dataclass(frozen=True)
    class Own(base):  # type: ignore[misc]
        """A layer."""

        def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
            result: Image = work(image)
            return result

        def back(self, log_odds: LogOdds, grid: tuple[int, ...], seeds: Sequence[int]) -> LogOdds:
            result: LogOdds = back(log_odds)  # type: ignore[misc]
            return result

    model = bright_model()
    return ma.attack(guarded(model.task, lambda task: model, (Own(),)).eval(), IMAGES, MASKS, "pgd(steps=1)")


# the parts below are registered for a command


def poison(work: Work) -> None:
    @register("mine", kind="poison")
    @dataclass(frozen=True)
    class Own(Poison):
        """A poison."""

        def poisoned(self, image: Image, target: Mask, seeds: Sequence[int]) -> tuple[Image, Mask]:
            result: tuple[Image, Mask] = work(image, target)
            return result


def backdoor(work: Work) -> None:
    @register("mine", kind="poison")
    @dataclass(frozen=True)
    class Own(Backdoor):
        """A trigger."""

        def marked(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
            result: Image = work(image)
            return result


def training_defence(work: Work, **more: Any) -> None:
    class Base(TrainingDefence):
        """A training defence."""

        def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
            result: Tensor = work(step, image, target)
            return result

    register("mine", kind="defence")(dataclass(frozen=True)(type("Own", (Base,), {"__module__": __name__, **more})))


def listing(work: Work) -> None:
    @register("mine", kind="dataset")
    @dataclass(frozen=True)
    class Own:
        """A format."""

        def listing(self, root: Path) -> Source:
            result: Source = work(root)
            return result


def source(root: Path, read: Work, scan: Any = None, **facts: Any) -> Source:
    """A listing of the four files p0 to p3 in `root`; `read` and what `scan` holds get the number of the file."""
    files = [root / f"p{n}" for n in range(4)]
    scans = [
        {"id": path.name, "group": path.name, "path": path, "sources": (path,), "read": lambda n=n: read(n)}
        | {name: value(n) if callable(value) else value for name, value in (scan or {}).items()}
        for n, path in enumerate(files)
    ]
    task = facts.pop("task", Task("own", ("lesion",)))
    listed = {"root": root, "format": "mine", "task": task, "scans": tuple(ScanFile(**each) for each in scans)}
    return Source(**(listed | {"patient_rule": "by name"} | facts))


def scan(n: int, **facts: Any) -> Scan:
    """A scan of two slices, with another in the place of what is named."""
    stored = np.random.default_rng(n).integers(0, 200, (2, 12, 12)).astype(np.int16)
    labels = np.zeros((2, 12, 12), np.uint8)
    labels[:, 3:8, 3:8] = 1
    own: dict[str, Any] = {"stored": stored, "labels": labels, "case_ids": (f"p{n}a", f"p{n}b")}
    return Scan(**(own | {"spacing_mm": (3.0, 1.0, 1.0)} | facts))


def factor(work: Work) -> None:
    @register("mine", kind="factor")
    def mine(scan: Batch, model: Model, card: Mapping[str, Any]) -> Tensor:
        """A factor."""
        result: Tensor = work(scan)
        return result
