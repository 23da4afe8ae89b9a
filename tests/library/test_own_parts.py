"""Attacks, objectives, balls, metrics and detectors of one's own: what they get wrong is said, and is in no number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers.own_parts import restored as restored
from helpers.tensors import bright_model, squares
from torch import Tensor, nn

import medseg_attack as ma
from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge
from medseg_attack.detectors.base import Detector
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Case, Image, Mask, Model

IMAGES, MASKS = squares(2)
EPS = 0.1

pytestmark = pytest.mark.usefixtures("restored")


def own_attack(make: Callable[..., Any]) -> Any:
    @register("own_attack", kind="attack")
    @dataclass(frozen=True)
    class Attack(Climbing):
        """An attack whose result is what a function says."""

        ball: Ball = Linf(EPS)

        def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Any:
            return make(image, target)

    return Attack()


def result(image: Any, **facts: Any) -> Adversarial:
    return Adversarial(image, torch.zeros(2), torch.zeros(2), **facts)


def filled(tensor: Tensor, value: float) -> Tensor:
    """The tensor, changed past the count that torch keeps of changes."""
    tensor.numpy().fill(value)
    return tensor


WRONG = {
    "a tensor": (lambda x, y: x, "expected an Adversarial from an attack, got a Tensor"),
    "nothing": (lambda x, y: None, "got a NoneType"),
    "another precision": (lambda x, y: result(x.double()), "expected image .* in torch.float32, got .* in torch.fl"),
    "bytes": (lambda x, y: result((x * 255).byte()), "got .* in torch.uint8"),
    "numpy": (lambda x, y: result(x.numpy()), "got ndarray"),
    "fewer images": (lambda x, y: result(x[:1]), r"expected image .* \(2, 1, 16, 16\) .*, got \(1, 1, 16, 16\)"),
    "no axis of channels": (lambda x, y: result(x[:, 0]), r"got \(2, 16, 16\)"),
    "another grid": (lambda x, y: result(x[..., :8]), r"got \(2, 1, 16, 8\)"),
    "a flow of another grid": (lambda x, y: result(x, flow=torch.zeros(2, 2, 4, 4)), "expected flow"),
    "a truth of numbers": (lambda x, y: result(x, truth=y.float()), "expected truth .* in torch.bool, got"),
    "passes of all": (lambda x, y: result(x, passes=torch.tensor([3, 4])), "expected passes"),
    "an image changed through numpy": (lambda x, y: result(filled(x, 0.0)), "changed in place"),
    "an image changed as data": (lambda x, y: result(x.data.zero_().clone()), "changed in place"),
    "a mask changed through numpy": (lambda x, y: (filled(y, 0.0), result(x))[1], "changed in place"),
}


@pytest.mark.parametrize(("make", "sentence"), WRONG.values(), ids=WRONG)
def test_what_an_attack_of_ones_own_returns_is_looked_at_before_it_is_scored(
    make: Callable[..., Any], sentence: str
) -> None:
    images, masks = IMAGES.clone(), MASKS.clone()
    with pytest.raises(InputError, match=sentence):
        ma.attack(bright_model(), images, masks, own_attack(make))
    assert torch.equal(images, IMAGES)  # the caller's tensors are as they were
    assert torch.equal(masks, MASKS)


def test_an_attack_of_ones_own_that_is_as_it_should_be_is_run() -> None:
    own = own_attack(lambda x, y: result((x + torch.where(y, -EPS, EPS)).clamp(0, 1)))
    attacked = ma.attack(bright_model(), IMAGES, MASKS, own)
    assert attacked.attack == "own_attack"
    assert attacked.size.tolist() == pytest.approx([EPS, EPS])


class WithoutName:
    """An attack that is not registered, and no dataclass."""

    ball: Ball = Linf(EPS)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judge(model, self.ball, image, image, target)


def mean_over_all(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(log_odds, target.to(log_odds))


def changing(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
    target.data.logical_not_()
    return log_odds.flatten(1).mean(1)


def without_number(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
    return log_odds.flatten(1).mean(1) * torch.nan


@pytest.mark.parametrize("eps", [None, EPS / 2])
@pytest.mark.parametrize(
    ("part", "got"),
    [
        (WithoutName(), "an object of WithoutName"),
        (replace(PGD(), objective=mean_over_all), "the function mean_over_all"),
    ],
)
def test_a_part_without_a_name_is_refused_since_no_budget_would_reach_it(
    part: Any, got: str, eps: float | None
) -> None:
    with pytest.raises(InputError, match=f"expected an attack whose parts have names, got {got} in it; write @reg"):
        ma.attack(bright_model(), IMAGES, MASKS, part, eps=eps)


def test_a_class_is_no_attack() -> None:
    with pytest.raises(InputError, match="expected an attack, got the class PGD; write a spec"):
        ma.attack(bright_model(), IMAGES, MASKS, PGD)  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [EPS / 2, "1raw"])
def test_a_budget_that_does_not_reach_the_ball_is_refused(eps: float | str) -> None:
    @register("own_attack", kind="attack")
    @dataclass(frozen=True)
    class Fixed:
        """An attack whose ball is no option."""

        steps: int = 1

        @property
        def ball(self) -> Ball:
            return Linf(EPS)

        def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
            return judge(model, self.ball, image, image, target)

    assert ma.attack(bright_model(), IMAGES, MASKS, Fixed()).size.tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match=f"got own_attack, whose ball stays at {EPS}; make the ball a field"):
        ma.attack(bright_model(), IMAGES, MASKS, Fixed(), eps=eps)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (mean_over_all, r"expected one number per sample from the objective own_loss, the shape \(2,\), got the shape"),
        (without_number, "got nan"),
        (changing, "got some that were changed in place"),
    ],
)
@pytest.mark.parametrize("attack", ["pgd(steps=1, objective=own_loss)", "square(queries=3, objective=own_loss)"])
def test_an_objective_of_ones_own_that_would_mix_samples_is_refused(
    attack: str, objective: Callable[..., Tensor], sentence: str
) -> None:
    register("own_loss", kind="objective")(objective)
    with pytest.raises(InputError, match=sentence):
        ma.attack(bright_model(), IMAGES, MASKS, attack)


NAMES = {
    "pgd": "expected a name of its own for .*, got 'pgd', the name of medseg_attack.*PGD; choose another for what is",
    "my-attack": "expected a name of letters, digits and _",
    "": "expected a name of letters, digits and _",
    "lambda": "expected a name of letters, digits and _",
}


@pytest.mark.parametrize(("name", "sentence"), NAMES.items())
def test_a_name_that_is_taken_or_that_no_spec_could_hold_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        register(name, kind="attack")(WithoutName)
    with pytest.raises(InputError, match=r"expected a kind among .* got 'attacks'; did you mean attack"):
        register("own_attack", kind="attacks")(WithoutName)


def overlap(pred: Tensor, target: Tensor, spacing_mm: object) -> Tensor:
    return (pred & target).flatten(2).sum(2).double()


def own_metric(make: Callable[..., Any], name: str = "own_metric") -> None:
    def metric(pred: Tensor, target: Tensor, spacing_mm: object) -> Any:
        return make(pred, target)

    register(name, kind="metric")(metric)


ANSWERS = {
    "no axis of cases": lambda p, t: overlap(p, t, ())[0],
    "too many": lambda p, t: torch.cat([overlap(p, t, ())] * 2, 1),
    "one more axis": lambda p, t: overlap(p, t, ())[..., None],
    "a number": lambda p, t: 1.0,
    "a list": lambda p, t: overlap(p, t, ()).tolist(),
    "nothing": lambda p, t: None,
}


@pytest.mark.parametrize("make", ANSWERS.values(), ids=ANSWERS)
def test_a_metric_of_ones_own_that_is_not_a_number_per_class_is_at_fault(make: Callable[..., Any]) -> None:
    own_metric(make)
    with pytest.raises(InputError, match=r"expected one number per case and class, the shape \(1, 1\), for the col"):
        ma.score(bright_model(), IMAGES, MASKS, metrics=["own_metric"])


def test_a_metric_that_changes_its_masks_changes_no_other_metric() -> None:
    own_metric(lambda p, t: overlap(p.zero_(), t.zero_(), ()))
    alone = ma.score(bright_model(), IMAGES, MASKS, metrics=["nsd"])
    beside = ma.score(bright_model(), IMAGES, MASKS, metrics=["own_metric", "nsd"])
    assert beside["nsd"].tolist() == alone["nsd"].tolist() != [0.0, 0.0]


@pytest.mark.parametrize("name", ["n", "hit", "n_target", "n_pred", "dice", "iou", "z", "touched"])
def test_a_metric_takes_no_column_of_counts_or_scores(name: str) -> None:
    own_metric(lambda p, t: overlap(p, t, ()) + 7, name)
    with pytest.raises(InputError, match=f"expected a metric with columns of its own, got '{name}', whose columns"):
        ma.score(bright_model(), IMAGES, MASKS, metrics=[name])


def test_a_metric_whose_option_has_no_default_says_so() -> None:
    @register("own_metric", kind="metric")
    def metric(pred: Tensor, target: Tensor, spacing_mm: object, *, tolerance: float) -> Tensor:
        return overlap(pred, target, spacing_mm) + tolerance

    with pytest.raises(InputError, match="own_metric needs tolerance, got nothing; add it"):
        ma.score(bright_model(), IMAGES, MASKS, metrics=["own_metric"])
    table = ma.score(bright_model(), IMAGES, MASKS, metrics="own_metric(tolerance=1)")
    assert "own_metric(tolerance=1)" in table


def test_a_column_of_a_metric_has_the_name_that_the_command_line_gives_it() -> None:
    table = ma.score(bright_model(), IMAGES, MASKS, metrics=["nsd(tolerance_mm=2)", "nsd", "nsd( tolerance_mm = 1 )"])
    assert {name for name in table if name.startswith("nsd")} == {"nsd", "nsd(tolerance_mm=1)"}


SCORES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one for all": (lambda s: s[:, 0].mean(), r"expected a score for each of 20 cases from .*, got a Tensor \(\)"),
    "columns": (lambda s: s, r"got a Tensor \(20, 1\) in torch.float32; the detector is at fault"),
    "a list": (lambda s: s[:, 0].tolist(), "got a list; the detector is at fault"),
    "nan of one": (
        lambda s: s[:, 0] if len(s) < 20 else s[:, 0].index_fill(0, torch.tensor(7), torch.nan),
        "expected a score of 7, got nan",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), SCORES.values(), ids=SCORES)
def test_a_detector_of_ones_own_is_calibrated_on_numbers_alone(make: Callable[[Tensor], Any], sentence: str) -> None:
    @register("own_detector", kind="detector")
    @dataclass(frozen=True)
    class Own(Detector):
        """The spread of log-odds."""

        reason = "the spread of log-odds"

        def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
            log_odds = model(image)
            return log_odds, log_odds.flatten(1).std(1)[:, None]

        def score(self, statistics: Tensor, cases: Sequence[Case]) -> Any:
            return make(statistics)

    masks = torch.zeros(20, 1, 16, 16, dtype=torch.bool)
    clean = torch.rand(20, 1, 16, 16), masks
    with pytest.raises(InputError, match=sentence):
        ma.detect(bright_model(), IMAGES, "own_detector", training=clean, calibration=clean)


def test_no_class_is_called_as_the_average_is_in_tables() -> None:
    with pytest.raises(InputError, match="expected names of classes other than 'mean', as tables call the average"):
        ma.wrap(nn.Conv2d(1, 1, 1).eval(), classes=["mean"], exclusive=False)
