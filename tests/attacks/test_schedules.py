"""Numbers that papers state of how attacks go on: weights, step sizes, radii, rates."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers.linear import Linear
from helpers.oracle_scene import EPS, EXCLUSIVE, ORGAN, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed.sea import sea
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD, bim, cospgd, fgsm, mi_fgsm, ni_fgsm, segpgd, ti_fgsm
from medseg_attack.attacks.minimal.asma import asma_ozbulak2019
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.threat.objectives.losses import bce, ce
from medseg_attack.threat.objectives.weighted import (
    cosine_bce,
    cosine_ce,
    masked_bce,
    masked_ce,
    progressive_bce,
    progressive_ce,
)
from medseg_attack.types import Attack, LogOdds, Mask, Model, Objective

SEEDS = [1, 2, 3]


def slope(objective: Objective, z: Tensor, target: Mask, progress: float = 1.0, softmax: bool = False) -> Tensor:
    z = z.clone().requires_grad_()
    value = objective(softmax_log_odds(z) if softmax else z, target, progress)
    return torch.autograd.grad(value.sum(), z)[0]


def entries() -> tuple[Tensor, Mask]:
    rng = torch.Generator().manual_seed(0)
    z = 4 * torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64)
    return z, torch.rand(2, 3, 5, 4, generator=rng) < 0.5


def pixels() -> tuple[Tensor, Mask]:
    """Logits, and one class per pixel."""
    z, _ = entries()
    labels = torch.randint(3, (2, 5, 4), generator=torch.Generator().manual_seed(1))
    return z, torch.nn.functional.one_hot(labels, 3).bool().movedim(-1, 1)


FORMS = [(entries, False, progressive_bce, masked_bce, bce), (pixels, True, progressive_ce, masked_ce, ce)]


@pytest.mark.parametrize(("scores", "softmax", "weighed", "masked", "plain"), FORMS, ids=["sigmoid", "softmax"])
def test_segpgd_goes_from_the_masked_gradient_to_half_of_the_plain_one(
    scores: Callable[[], tuple[Tensor, Mask]], softmax: bool, weighed: Objective, masked: Objective, plain: Objective
) -> None:
    """lambda = progress / 2: right entries weigh 1 - lambda, wrong ones lambda, and N counts all of both."""
    z, target = scores()
    first, half, last = (slope(weighed, z, target, progress, softmax) for progress in (0.0, 0.5, 1.0))
    of_right, of_all = slope(masked, z, target, softmax=softmax), slope(plain, z, target, softmax=softmax)
    torch.testing.assert_close(first, of_right)
    torch.testing.assert_close(last, of_all / 2)
    torch.testing.assert_close(half, 0.75 * of_right + 0.25 * (of_all - of_right))


def test_where_everything_is_right_segpgd_is_pgd() -> None:
    """One weight for all, which no sign feels; through a blur a pixel that is lost says less to its neighbours."""
    model = oracle(ORGAN, "blurred_oracle")
    for image, same in ((torch.where(images() >= 0.5, 0.8, 0.2).double(), True), (images(0.02), False)):
        target = truth(model, image)
        plain = PGD(Linf(EPS), bce, 6, keep_worst=False)(model, image, target, SEEDS)
        assert torch.equal(model.decide(model(plain.image)), target) == same
        assert torch.equal(segpgd(Linf(EPS), steps=6)(model, image, target, SEEDS).image, plain.image) == same


def test_cosines_of_two_classes_and_of_an_entry() -> None:
    """The entry's gradient t p q / sqrt(p^2 + q^2) is even in the margin and largest, 2^-3/2 = .3536, at 0."""
    m = torch.linspace(-9, 9, 721, dtype=torch.float64)
    z, organ = m.view(-1, 1, 1, 1), torch.ones(721, 1, 1, 1, dtype=torch.bool)
    gradient = slope(cosine_bce, z, organ).flatten()
    p, q = torch.sigmoid(m), torch.sigmoid(-m)
    torch.testing.assert_close(gradient, -p * q / (p**2 + q**2).sqrt())
    torch.testing.assert_close(gradient, gradient.flip(0))
    assert gradient.abs().argmax() == 360
    assert gradient.abs().max().item() == pytest.approx(2**-1.5)
    torch.testing.assert_close(slope(cosine_bce, z, ~organ).flatten(), -gradient)
    # of a softmax pixel: weights between 0 and 1, nearly 1 where it is sure and right, nearly 0 where sure and wrong
    logits, target = pixels()
    ratio = slope(cosine_ce, logits, target, softmax=True) / slope(ce, logits, target, softmax=True)
    assert ((ratio >= 0) & (ratio <= 1 + 1e-9)).all()
    p = logits.softmax(1)
    torch.testing.assert_close(ratio[:, 0], (p * target).sum(1) / p.norm(dim=1))


def test_where_everything_is_right_and_sure_cospgd_is_pgd() -> None:
    model = oracle(ORGAN)
    image = torch.where(images() >= 0.5, 0.95, 0.05).double()
    options = {"ball": Linf(EPS), "steps": 6, "keep_worst": False}
    cos = cospgd(Linf(EPS), steps=6)(model, image, truth(model, image), SEEDS).image
    assert torch.equal(cos, PGD(**options)(model, image, truth(model, image), SEEDS).image)  # type: ignore[arg-type]


class Path:
    """The log-odds of a blurred oracle, and every image that a gradient was asked at."""

    def __init__(self, model: Model) -> None:
        self.model, self.task, self.shown = model, model.task, list[Tensor]()

    def __call__(self, image: Tensor) -> LogOdds:
        if image.requires_grad:
            self.shown.append(image.detach().clone())
        return self.model(image)

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)


def test_steps_of_apgd_are_twice_the_ball_halved_a_whole_number_of_times() -> None:
    """Before it is projected each step moves every pixel alike from an image that was shown: by eps 2 / 2^j, smaller
    than the one before at checkpoints alone."""
    asked: list[Tensor] = []

    class Noting(Linf):
        def project(self, x: Tensor, x0: Tensor) -> Tensor:
            asked.append(x.detach())
            return super().project(x, x0)

    path, image = Path(oracle(ORGAN, "blurred_oracle")), images(0.4)[:1]
    APGD(Noting(0.2), bump, 100)(path, image, truth(path.model, image), SEEDS[:1])
    shown = torch.cat(path.shown)
    halvings = []
    for step in asked[-200::2]:  # each is followed by its mixture with the last
        moved = (step - shown).abs().flatten(1)
        alike = (moved.amax(1) - moved.amin(1)) < 1e-9
        assert alike.sum() == 1
        halvings.append(math.log2(2 * 0.2 / moved[alike][0, 0].item()))
    assert halvings == pytest.approx([round(n) for n in halvings], abs=1e-6)
    assert halvings[0] == pytest.approx(0)
    jumps = [n for n, (before, after) in enumerate(pairwise(map(round, halvings)), start=1) if after != before]
    assert all(round(halvings[n]) - round(halvings[n - 1]) == 1 for n in jumps)
    assert set(jumps) <= {22, 41, 57, 70, 80, 87, 93, 99}
    assert len(jumps) > 2


def bump(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
    """A hill whose top is inside of the ball, so that large steps stop paying."""
    return -(log_odds - 0.3).square().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("steps", "expected"), [(20, [(2.0, 6), (1.5, 6), (1.0, 8)]), (30, [(2.0, 9), (1.5, 9), (1.0, 12)])]
)
def test_each_member_of_sea_goes_through_the_radii(steps: int, expected: list[tuple[float, int]]) -> None:
    """As many gradients in all as steps; how far the images are tells the radius of each."""
    model, image = Path(oracle(ORGAN, "blurred_oracle")), images(0.3)
    target = truth(model.model, image)
    for member in sea(Linf(EPS), steps).attacks:
        model.shown.clear()
        result = member(model, image, target, SEEDS)
        far = torch.stack([(x - image).abs().amax() for x in model.shown]) / EPS
        assert len(far) == steps  # the first of a phase is where it starts, what it ends with needs no gradient
        start = 0
        for radius, n in expected:
            assert far[start] <= radius + 1e-9
            assert far[start + 1 : start + n].tolist() == pytest.approx([radius] * (n - 1))
            start += n
        assert (result.size <= EPS + 1e-12).all()


def test_a_larger_ball_and_more_members_never_do_less() -> None:
    model, image = oracle(EXCLUSIVE, "blurred_oracle"), images(0.3)
    target = truth(model, image)
    harms = [sea(Linf(eps), 20)(model, image, target, SEEDS).harm for eps in (EPS / 4, EPS / 2, EPS, 2 * EPS)]
    assert all((large >= small).all() for small, large in pairwise(harms))
    for member in sea(Linf(EPS), 20).attacks:
        assert (harms[2] >= member(model, image, target, SEEDS).harm - 1e-12).all()


FAMILY: list[tuple[Attack, Attack]] = [
    (bim(Linf(EPS), steps=8, step_size=1 / 8), mi_fgsm(Linf(EPS), steps=8, momentum=0.0)),
    (mi_fgsm(Linf(EPS), steps=8, momentum=0.0), ni_fgsm(Linf(EPS), steps=8, momentum=0.0)),
    (fgsm(Linf(EPS)), PGD(Linf(EPS), steps=1, step_size=1.0, random_start=False, keep_worst=False)),
    (fgsm(L2(0.5)), mi_fgsm(L2(0.5), steps=1)),
    (mi_fgsm(Linf(EPS), steps=3), ti_fgsm(Linf(EPS), steps=3, smooth=1)),
]


@pytest.mark.parametrize(("special", "other"), FAMILY, ids=lambda a: registry.spec(a)[:40])
def test_members_of_the_family_are_each_other_without_what_sets_them_apart(special: Attack, other: Attack) -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    torch.testing.assert_close(
        special(model, image, target, SEEDS).image, other(model, image, target, SEEDS).image, atol=1e-9, rtol=0
    )


def test_bim_is_a_loop_of_three_lines() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target, x = truth(model, image), image
    for _ in range(8):
        grad = slope(lambda x, y, _: bce(model(x), y), x, target)
        x = (x + EPS / 4 * grad.sign()).clamp(image - EPS, image + EPS).clamp(0, 1)
    torch.testing.assert_close(bim(Linf(EPS), steps=8)(model, image, target, SEEDS).image, x)


def test_small_steps_stay_inside_of_the_ball_and_large_ones_reach_its_edge() -> None:
    model, image = oracle(ORGAN), images(0.3)
    target = truth(model, image)
    short = bim(Linf(EPS), steps=3, step_size=0.2)(model, image, target, SEEDS)
    torch.testing.assert_close(short.size, torch.full((3,), 0.6 * EPS, dtype=torch.float64))
    whole = PGD(Linf(EPS), bce, 8, 0.25, keep_worst=False)(model, image, target, SEEDS)
    assert ((whole.image - image).abs() > EPS - 1e-9).double().mean() > 0.95
    length = PGD(L2(0.5), bce, 8, 0.5, keep_worst=False)(model, image, target, SEEDS).size
    torch.testing.assert_close(length, torch.full((3,), 0.5, dtype=torch.float64), atol=1e-4, rtol=0)


def test_published_asma_steps_by_the_raw_gradient_times_a_rate_of_the_overlap() -> None:
    """P = 1e-6 IoU + 1e-7: on a linear model the first step, which knows of no overlap, is 1e-7 times the slopes; a
    later one is at most 1.1e-6 times those and twice the change."""
    model = CountedModel(Linear(((1.0,),), (0.0,), exclusive=False))
    image = torch.full((1, 1, 2, 4), 0.6, dtype=torch.float64)
    image[..., :2] = 0.4
    target = model.decide(model(image))
    path = Path(model)
    asma_ozbulak2019(goal=Erase(), steps=3)(path, image, target, [0])
    first, second, third = path.shown
    torch.testing.assert_close(first, image)
    torch.testing.assert_close(
        (second - first)[target], torch.full((4,), -1e-7, dtype=torch.float64), atol=1e-15, rtol=0
    )
    assert (second - first)[~target].abs().max() == 0
    later = (third - second)[target].abs()
    assert (later >= 1e-7 * (1 - 1e-6)).all()
    assert (later <= 1.1e-6).all()
