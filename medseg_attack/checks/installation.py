"""Is this installation right? Attacks, balls and objectives against closed forms and stored values, in seconds.

Every check is a small function that compares two things and says which; it raises `WrongError` where they differ.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.types import Adversarial, Attack, Mask, Model, Objective, Task

EPS = 0.03
SEEDS = (1, 2, 3)
_SHAPE = (3, 1, 24, 20)


class WrongError(Exception):
    """The two sides of a check differ; the text says by how much."""


@dataclass(frozen=True)
class Outcome:
    """One check: what was compared, and `problem`, "" if both sides agree."""

    name: str
    compared: str
    problem: str
    seconds: float


def run(checks: Sequence[Callable[[], None]] | None = None) -> Iterator[Outcome]:
    """Outcomes of the checks, one by one; whatever a check raises is its problem."""
    for check in CHECKS if checks is None else checks:
        start = time.perf_counter()
        try:
            check()
            problem = ""
        except Exception as error:  # a crash is as red as a difference
            problem = str(error) if isinstance(error, WrongError) else f"{type(error).__name__}: {error}"
        compared = " ".join((check.__doc__ or "").split()).rstrip(".")
        yield Outcome(check.__name__, compared, problem, time.perf_counter() - start)


def same(result: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Raises `WrongError` unless the tensors agree in shape and, entry by entry, within the tolerance."""
    if result.shape != expected.shape:
        raise WrongError(f"{what}: expected the shape {tuple(expected.shape)}, got {tuple(result.shape)}")
    distance = (result.double() - expected.double()).abs().max().item()
    if not distance <= tolerance:  # NaN is wrong, too
        raise WrongError(f"{what}: up to {distance:.3g} apart")


def oracle(name: str = "oracle", exclusive: bool = False) -> Model:
    """A linear model in double precision whose worst case is known."""
    task = Task("oracle", ("background", "organ", "never") if exclusive else ("organ",), exclusive)
    model: SegModel = registry.build(name, "model")(task).double().eval()
    return model


def images(spread: float = 0.5) -> Tensor:
    """Uniform in 1/2 +- spread, the same at every call."""
    rng = torch.Generator().manual_seed(0)
    return 0.5 + spread * (2 * torch.rand(_SHAPE, generator=rng, dtype=torch.float64) - 1)


def attacked(text: str, model: Model, image: Tensor, target: Mask | None = None) -> Adversarial:
    """The result of a registered attack on the images; by default the model's own answer is the truth."""
    attack: Attack = registry.build(text, "attack")
    return attack(model, image, model.decide(model(image)) if target is None else target, SEEDS)


def linf_flips() -> None:
    """Pixels that FGSM, BIM, MI-FGSM and PGD flip on a linear model: exactly those within eps of the threshold."""
    image = images()
    for exclusive in (False, True):
        model = oracle(exclusive=exclusive)
        for text in ("fgsm", "bim", "mi_fgsm", "pgd(steps=20, step_size=1/3)", "pgd(keep_worst=False)"):
            attack = registry.with_eps(registry.build(text, "attack"), EPS)
            target = model.decide(model(image))
            wrong = model.decide(model(attack(model, image, target, SEEDS).image)) != target
            organ = 1 if exclusive else 0
            same(wrong[:, organ], ((image - 0.5).abs() < EPS)[:, 0], text)


def fgsm_step() -> None:
    """FGSM on a linear model: x - eps on organs, x + eps elsewhere, cut to [0, 1]."""
    model, image = oracle(), images()
    moved = image + EPS * torch.where(image >= 0.5, -1.0, 1.0)
    same(attacked(f"fgsm(linf({EPS}))", model, image).image, moved.clamp(0, 1), "fgsm")


def l2_step() -> None:
    """FGSM in L2 on a linear objective: eps / sqrt(pixels) per pixel."""
    model, image = oracle(), images(0.2)
    step = 0.5 / math.sqrt(image[0].numel())
    expected = image + step * torch.where(image >= 0.5, -1.0, 1.0)
    result = attacked("fgsm(l2(0.5), margin)", model, image)
    same(result.image, expected, "image")
    same(result.size, torch.full((3,), 0.5), "size")


def l2_optimum() -> None:
    """Margin after 40 steps of PGD in L2: the optimum of a linear objective."""
    model, image = oracle(), images(0.2)
    target = model.decide(model(image))
    margin: Objective = registry.build("margin", "objective")
    result = attacked("pgd(l2(0.5), margin, steps=40, keep_worst=False)", model, image)
    optimum = margin(model(image), target) + 10 * 0.5 / math.sqrt(image[0].numel())
    same(margin(model(result.image), target), optimum, "margin", 1e-6)


def adjoint_of_a_blur() -> None:
    """Direction of FGSM through a 3 x 3 box filter: the filtered pull of the loss."""
    model, image = oracle("blurred_oracle"), images()
    target = model.decide(model(image))
    moved = attacked("fgsm(linf(0.01))", model, image).image - image
    pull = torch.sigmoid(model(image)) - target.double()
    filtered = torch.nn.functional.avg_pool2d(pull, 3, stride=1, padding=1)
    inside = (image > 0.01) & (image < 0.99) & (filtered.abs() > 1e-9)
    same(moved.sign()[inside], filtered.sign()[inside], "signs")


def momentum() -> None:
    """Two steps of MI-FGSM on a box filter: written out, gradients divided by their mean magnitude."""
    model, image = oracle("blurred_oracle"), images()
    target = model.decide(model(image))
    x, direction = image, torch.zeros_like(image)
    for _ in range(2):
        pull = (torch.sigmoid(model(x)) - target.double()) / image[0].numel()
        slope = 10 * torch.nn.functional.avg_pool2d(pull, 3, stride=1, padding=1)
        direction = direction + slope / slope.abs().mean((1, 2, 3), keepdim=True)
        x = (x + EPS / 2 * direction.sign()).clamp(image - EPS, image + EPS).clamp(0, 1)
    same(attacked(f"mi_fgsm(linf({EPS}), steps=2)", model, image).image, x, "image")


def projections() -> None:
    """Points outside the balls: the nearest inside, then inside [0, 1]."""
    x0 = torch.tensor([[[[0.5, 0.01, 0.98, 0.5]]]], dtype=torch.float64)
    x = torch.tensor([[[[0.8, -0.3, 1.2, 0.49]]]], dtype=torch.float64)
    nearest = torch.tensor([[[[0.6, 0.0, 1.0, 0.49]]]], dtype=torch.float64)
    same(Linf(0.1).project(x, x0), nearest, "linf")
    move = torch.tensor([[[[0.3, 0.0, 0.0, -0.4]]]], dtype=torch.float64)
    same(L2(0.1).project(x0 + move, x0), x0 + 0.2 * move, "l2")
    same(L2(0.9).project(x0 + move, x0), x0 + move, "l2, inside")
    same(L2(0.9).project(x, x0), x.clamp(0, 1), "l2, box")


def random_points() -> None:
    """Random starts and noise: inside the ball, at its surface where that is promised, the same for the same seeds."""
    image = images(0.2)
    model = oracle()
    same(attacked(f"noise(linf({EPS}))", model, image).size, torch.full((3,), EPS), "noise, linf")
    same(attacked("noise(l2(0.5))", model, image).size, torch.full((3,), 0.5), "noise, l2")
    for ball in (Linf(EPS), L2(0.5)):
        drawn = ball.sample(image, SEEDS)
        if not (ball.size(drawn, image) <= ball.eps + 1e-12).all() or (drawn == image).all():
            raise WrongError(f"{registry.spec(ball)}: a random start is outside the ball or does not move")
        same(ball.sample(image[1:], SEEDS[1:]), drawn[1:], "sample 2 without sample 1")


def objective_slopes() -> None:
    """Gradients of bce, focal, margin and soft_dice at margins from -5 to 8: their formulas."""
    m = torch.tensor([-5.0, -2.0, 0.0, 2.0, 5.0, 8.0], dtype=torch.float64)
    q, p = torch.sigmoid(-m), torch.sigmoid(m)
    softplus = torch.nn.functional.softplus(-m)
    expected = {
        "bce": -q,
        "focal": -(q**2) * (q + 2 * (1 - q) * softplus),
        "margin": -torch.ones_like(m),
        "soft_dice": p * (1 - p) * ((2 * p + 1) / (p + 2) ** 2 - 2 / (p + 2)),  # one pixel, smoothed by 1
    }
    for name, slope in expected.items():
        z = m.clone().view(-1, 1, 1, 1).requires_grad_()
        objective: Objective = registry.build(name, "objective")
        (result,) = torch.autograd.grad(objective(z, torch.ones_like(z, dtype=torch.bool), 0.0).sum(), z)
        same(result.flatten(), slope, name)


def objective_values() -> None:
    """Values of the objectives on two images of six pixels: numbers worked out apart from this code."""
    z = torch.tensor([2.0, -1.0, 0.5, -3.0, 4.0, 0.0], dtype=torch.float64).view(1, 1, 2, 3)
    z = torch.cat((z, -z))
    target = torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.bool).view(1, 1, 2, 3).expand(2, -1, -1, -1)
    for name, values in VALUES.items():
        result = registry.build(name, "objective")(z, target, 0.0)
        same(result, torch.tensor(values, dtype=torch.float64), name, 1e-6)


def softmax_as_log_odds() -> None:
    """The sigmoid of the log-odds of a softmax head is the softmax, for logits up to +-90."""
    rng = torch.Generator().manual_seed(1)
    logits = 30 * torch.randn(4, 5, 6, 7, generator=rng, dtype=torch.float64)
    result = softmax_log_odds(logits)
    same(torch.sigmoid(result), logits.softmax(1), "probability", 1e-12)
    same(result.argmax(1), logits.argmax(1), "winner")


def empty_budget() -> None:
    """Every attack at eps 0: the image, bit for bit."""
    model, image = oracle("blurred_oracle"), images()
    for text in ("noise", "fgsm", "bim", "mi_fgsm", "pgd"):
        attack = registry.with_eps(registry.build(text, "attack"), 0.0)
        same(attack(model, image, model.decide(model(image)), SEEDS).image, image, text, 0.0)


def the_worst_is_kept() -> None:
    """PGD's harm: no less than on the clean image, nor with fewer steps; between equals the smaller change."""
    model, image = oracle("blurred_oracle"), images()
    target = model.decide(model(image)).roll(2, 3)
    before = harm(model.decide(model(image)), target).double()
    for steps in (1, 3, 9):
        result = PGD(Linf(EPS), steps=steps)(model, image, target, SEEDS).harm
        if not (result >= before).all():
            raise WrongError(f"{steps} steps do less harm than before")
        before = result
    small = Adversarial(image[:2], torch.tensor([0.5, 0.2]), torch.tensor([0.1, 0.1]))
    large = replace(small, harm=torch.tensor([0.5, 0.3]), size=torch.tensor([0.2, 0.2]))
    same((large | small).size, torch.tensor([0.1, 0.2]), "merged", 0.0)


def cases_alone() -> None:
    """An attack on three cases: what it does on each alone."""
    model, image = _Conv(), images()
    target = model.decide(model(image)).roll(1, 2)
    target[1] = False
    for text in ("mi_fgsm(linf(0.2), soft_dice)", "pgd(l2(0.5), dice_focal, steps=4)", "noise"):
        together = attacked(text, model, image, target).image
        attack: Attack = registry.build(text, "attack")
        for i, seed in enumerate(SEEDS):
            alone = attack(model, image[i : i + 1], target[i : i + 1], [seed]).image
            same(together[i : i + 1], alone, f"{text}, case {i}")


def scores() -> None:
    """Harm of hard masks: 1 - Dice by hand; an organ in neither mask is right."""
    pred = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 1, 1], [1, 0, 0, 0]]], dtype=torch.bool)
    target = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [1, 0, 0, 0]]], dtype=torch.bool)
    same(harm(pred, target), torch.tensor([(1 / 3 + 0) / 2, (1 + 0) / 2]), "harm", 1e-6)


def stored_images() -> None:
    """FGSM, BIM, MI-FGSM and PGD (Linf and L2) through a small convolution: images that were stored, by checksum."""
    model, image = _Conv(), images()
    target = images().roll(5, 3) > 0.6
    weights = torch.cos(torch.arange(image[0].numel(), dtype=torch.float64)).view_as(image[:1])
    for text, values in GOLDEN.items():
        result = attacked(text, model, image, target).image
        same(((result - image) * weights).flatten(1).sum(1), torch.tensor(values, dtype=torch.float64), text, 1e-6)


class _Conv:
    """Two convolutions with weights from a formula, so that no random generator can change them."""

    task = Task("golden", ("organ",))

    def __call__(self, image: Tensor) -> Tensor:
        first = torch.sin(torch.arange(1, 37, dtype=torch.float64) * 1.7).view(4, 1, 3, 3)
        last = torch.cos(torch.arange(1, 37, dtype=torch.float64) * 0.9).view(1, 4, 3, 3)
        hidden = torch.tanh(torch.nn.functional.conv2d(image - 0.5, first, padding=1))
        return 4 * torch.nn.functional.conv2d(hidden, last, padding=1)

    def decide(self, log_odds: Tensor) -> Mask:
        return log_odds >= 0


VALUES: dict[str, tuple[float, float]] = {
    "bce": (0.529025190, 1.779025190),
    "ce": (0.243056604, 1.076389938),
    "focal": (0.209080903, 1.425797367),
    "soft_dice": (0.279133676, 0.591468002),
    "margin": (-1.250000000, 1.250000000),
    "dice_focal": (0.488214579, 2.017265368),
    "bce_dice": (0.808158867, 2.370493192),
}

GOLDEN: dict[str, tuple[float, float, float]] = {
    "fgsm(linf(0.03))": (0.128792169, -0.440815538, -0.824266874),
    "bim(linf(0.03), steps=4)": (0.117180187, -0.434395486, -0.816565065),
    "mi_fgsm(linf(0.03), soft_dice, steps=4)": (0.085648324, -0.246693998, 0.023495987),
    "pgd(linf(0.03), dice_focal, steps=4)": (0.107283774, -0.599161929, -0.592392048),
    "pgd(l2(0.5), bce_dice, steps=4)": (0.796591462, -0.157498194, 0.032853967),
}


CHECKS = tuple(  # the functions of this module that take and return nothing
    function
    for function in list(globals().values())
    if inspect.isfunction(function) and function.__module__ == __name__ and function.__annotations__ == {"return": None}
)
