"""Searches for the least change where what they end at can be written down: prices, margins, boxes, rates."""

import pytest
import torch
from helpers.near_decision import EXCLUSIVE, ORGAN, SEEDS, attacked, images, nearest, oracle
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.minimal.lbfgs import Lbfgs, _newton
from medseg_attack.attacks.minimal.search import Search
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.goals.aim import Aim
from medseg_attack.threat.goals.criteria import ByPixels
from medseg_attack.threat.objectives.losses import margin
from medseg_attack.types import LogOdds, Mask, Task

TASKS = pytest.mark.parametrize("task", [ORGAN, EXCLUSIVE], ids=["sigmoid", "softmax"])
# what the reference implementation ends at for pixels within .02 of the boundary, to the digits it is told with
OPTIMA = [0.0199, 0.0198, 0.0198]


@TASKS
def test_alma_prox_ends_at_the_optimum_of_pixels_near_the_boundary(task: Task) -> None:
    image = images(0.02)
    assert nearest(image)[:, -1].tolist() == pytest.approx(OPTIMA, abs=5e-5)
    result, flipped = attacked(registry.build("alma_prox(step_size=0.0001)", "attack"), task, image)
    assert (flipped >= 0.99).all()
    torch.testing.assert_close(result.size, nearest(image)[:, -1], rtol=0.01, atol=0)


def test_a_high_price_makes_every_pixel_flip_for_the_length_of_all_distances() -> None:
    """C&W with one price so high that nothing else counts: all flip, for sqrt(sum d^2) and what Adam overshoots."""
    image = images(0.2)
    text = "cw(l2(100), success=by_pixels(1.0), searches=1, price=1000.0, steps=400, step_size=0.001)"
    result, flipped = attacked(registry.build(text, "attack"), ORGAN, image)
    assert (flipped == 1).all()
    optimum = nearest(image, 1.0).square().sum(1).sqrt()
    assert (result.size >= optimum * (1 - 1e-9)).all()
    assert (result.size <= 1.15 * optimum).all()


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_margins_end_at_kappa(kappa: float) -> None:
    """Of pixels that flipped: pushed as far beyond the boundary as asked, and no further than a step of Adam."""
    image, model = images(0.2), oracle(ORGAN)
    text = f"cw(l2(100), searches=6, steps=150, step_size=0.002, kappa={kappa})"
    result, _ = attacked(registry.build(text, "attack"), ORGAN, image)
    over = -model(result.image) * torch.where(image >= 0.5, 1.0, -1.0)  # the oracle's log-odds, > 0 where flipped
    middle = over.flatten(1).median(1).values
    assert (middle >= kappa - 0.02).all()
    assert (middle <= kappa + 0.25).all()


class OutOfReach:
    """Organ from 1.05 on, where no pixel can come: what pushes there leaves [0, 1] unless it is cut."""

    task = ORGAN

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, image: Tensor) -> LogOdds:
        self.shown.append(image.detach())
        return 10 * image - 10.5

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0


@pytest.mark.parametrize("name", [name for name in registry.names("attack") if registry.find(name).takes("success")])
def test_every_image_that_a_search_shows_lies_in_the_box(name: str) -> None:
    image, model = images(0.5), OutOfReach()
    attack = registry.build(name, "attack", {"steps": 8, "searches": 2})
    result = attack(model, image, image < 0, SEEDS)
    assert len(model.shown) > 3
    assert all(((x >= 0) & (x <= 1)).all() for x in model.shown)
    assert not torch.as_tensor(result.success).any() or name.startswith("asma")


def test_lbfgs_needs_no_more_than_pgd_at_the_same_success() -> None:
    """PGD in the smallest of balls, each 5 % larger than the last, in which it flips as many pixels as asked."""
    image, model, share = images(0.2), oracle(ORGAN), 0.9
    target = model.decide(model(image))
    result, flipped = attacked(
        registry.build(f"lbfgs(l2(100), success=by_pixels({share}), searches=8)", "attack"), ORGAN, image
    )
    assert (flipped >= share).all()
    needed = torch.full((3,), torch.inf, dtype=torch.float64)
    for k in range(20):
        ball = L2(2.0 * 1.05**k)
        hit = PGD(ball, margin, steps=20, step_size=0.2)(model, image, target, SEEDS)
        success = ByPixels(share).away(model.decide(model(hit.image)), target, ORGAN) >= 1
        needed = torch.where(success & needed.isinf(), hit.size, needed)
    assert needed.isfinite().all()
    assert (result.size <= needed).all()


def test_dag_changes_by_gamma_per_step_at_most_and_no_more_once_it_is_there() -> None:
    model, image = oracle(ORGAN), images(0.02)
    target = model.decide(model(image))
    for steps in (1, 2, 5):
        text = f"dag(steps={steps}, success=by_pixels({0.04 * steps}))"
        result = registry.build(text, "attack")(model, image, target, SEEDS)
        assert (result.size <= steps * 0.001 + 1e-12).all()
    enough = [registry.build(f"dag(steps={steps})", "attack")(model, image, target, SEEDS).image for steps in (40, 80)]
    assert torch.equal(*enough)


@pytest.mark.parametrize("theta", [0.05, 0.15, 0.4])
def test_jsma_flips_a_pixel_if_and_only_if_theta_reaches_it(theta: float) -> None:
    """Every pixel changed once, by theta: those within it are on the other side."""
    image, model = images(0.3), oracle(ORGAN)
    target = model.decide(model(image))
    attack = registry.build(f"jsma(l0(1.0), steps=1, share=1.0, theta={theta}, success=by_pixels(0.05))", "attack")
    result = attack(model, image, target, SEEDS)
    flipped = model.decide(model(result.image)) != target
    assert torch.equal(flipped, (image - 0.5).abs() < theta)
    assert torch.as_tensor(result.success).all()


def test_failures_are_told_apart_from_images_that_needed_nothing() -> None:
    """Three cases: met before, met by the search, beyond it. Two are successes, of which one changed nothing."""
    image, model = images(0.02), oracle(ORGAN)
    target = model.decide(model(image))
    target[0] = ~target[0]
    image[2] = torch.where(image[2] >= 0.5, 0.95, 0.05)
    target[2] = image[2] >= 0.5
    result = registry.build("dag(linf(0.1))", "attack")(model, image, target, SEEDS)
    assert torch.as_tensor(result.success).tolist() == [True, True, False]
    assert (result.size > 0).tolist() == [False, True, False]
    assert Linf(0.1).size(result.image, image).tolist() == result.size.tolist()


def test_the_two_loops_are_the_product_with_the_matrix_that_bfgs_updates() -> None:
    """H <- (I - r s y') H (I - r y s') + r s s' with r = 1 / s'y, pair by pair, from the unit times I."""
    generator = torch.Generator().manual_seed(0)
    n, unit = 5, torch.tensor([0.5, 2.0], dtype=torch.float64)
    moved, noise = torch.randn(2, 3, 2, n, generator=generator, dtype=torch.float64)
    changes = moved + 0.3 * noise
    changes[1, 1], moved[1, 1] = 0, 0  # a pair of zeros is none
    grad = torch.randn(2, n, generator=generator, dtype=torch.float64)
    expected, one = [], torch.eye(n, dtype=torch.float64)
    for sample in range(2):
        inverse = unit[sample] * one
        for s, y in zip(moved[:, sample], changes[:, sample], strict=True):
            if s.any():
                left = one - torch.outer(s, y) / (s @ y)
                inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
        expected.append(inverse @ grad[sample])
    pairs = list(zip(moved, changes, strict=True))
    torch.testing.assert_close(_newton(grad, pairs, unit), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_lbfgs_ends_at_the_optimum_of_its_sum_pixel_by_pixel_and_at_the_box() -> None:
    """Squares plus a price on mean softplus(-excess): of a pointwise model every pixel has its own optimum."""
    image = images(0.2)
    inner = oracle(ORGAN)
    shown: list[Tensor] = []

    class Watched:
        task, decide = ORGAN, staticmethod(inner.decide)

        def __call__(self, x: Tensor) -> LogOdds:
            shown.append(x.detach().clone())
            return inner(x)

    target = inner.decide(inner(image))
    side = torch.where(target, -1.0, 1.0).double()
    price = torch.tensor([0.1, 1.0, 60.0], dtype=torch.float64) * image[0].numel()
    search = Search(Watched(), L2(100.0), Aim.of(None, ByPixels(), ORGAN), image, target)  # type: ignore[arg-type]
    Lbfgs(steps=50).descend(search, price)
    per_pixel = price.view(3, 1, 1, 1) / image[0].numel()
    low, high = torch.zeros_like(image), torch.ones_like(image)
    for _ in range(60):  # the slope rises in x
        x = (low + high) / 2
        slope = 2 * (x - image) - per_pixel * 10 * side * torch.sigmoid(-side * 10 * (x - 0.5))
        low, high = torch.where(slope < 0, x, low), torch.where(slope < 0, high, x)
    assert len(shown) == 50
    torch.testing.assert_close(shown[-1], x, atol=1e-4, rtol=0)
    assert ((shown[-1][2] == 0) | (shown[-1][2] == 1)).all()
