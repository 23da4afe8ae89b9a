"""Auto-PGD: its schedule, its steps, its optima."""

import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from helpers.oracle_scene import EPS, EXCLUSIVE, ORGAN, flipped, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed.sea import sea
from medseg_attack.attacks.gradient.apgd import APGD, checkpoints, phases
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.threat.objectives.weighted import masked_bce
from medseg_attack.types import Attack, LogOdds, Mask, Task

SEEDS = [1, 2, 3]


def test_checkpoints_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(300) == [66, 123, 171, 210, 240, 261, 279, 297]
    assert checkpoints(20)[:5] == [4, 7, 9, 10, 11]
    assert checkpoints(1) == [1]


def test_phases_of_the_radius_schedule() -> None:
    assert phases(300, (2.0, 1.5, 1.0)) == [(2.0, 90), (1.5, 90), (1.0, 120)]
    assert phases(20, (2.0, 1.5, 1.0)) == [(2.0, 6), (1.5, 6), (1.0, 8)]
    assert phases(7, (1.0,)) == [(1.0, 7)]


@pytest.mark.parametrize("task", [ORGAN, EXCLUSIVE], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize(
    "attack",
    [
        *(APGD(Linf(EPS), registry.build(name, "objective"), 20) for name in ("bce", "masked_bce", "js", "margin")),
        APGD(Linf(EPS), masked_bce, 30, radii=(2.0, 1.5, 1.0)),
        sea(Linf(EPS), 20),
        registry.with_eps(registry.build("strongest(gradients=60)", "attack"), EPS),
    ],
    ids=["bce", "masked_bce", "js", "margin", "radii", "sea", "strongest"],
)
def test_pixels_within_eps_are_flipped_and_no_others(attack: Attack, task: Task) -> None:
    image = images()
    wrong = flipped(oracle(task), attack, image)
    assert torch.equal(wrong[:, 1 if task.exclusive else 0], (image[:, 0] - 0.5).abs() < EPS)
    result = attack(oracle(task), image, truth(oracle(task), image), SEEDS)
    assert (result.size <= EPS + 1e-12).all()


def test_half_the_budget_flips_fewer() -> None:
    """The test above can fail."""
    image = images()
    wrong = flipped(oracle(ORGAN), APGD(Linf(EPS / 2), steps=20), image)
    assert not torch.equal(wrong[:, 0], (image[:, 0] - 0.5).abs() < EPS)


def test_l2_reaches_the_optimum_of_a_linear_objective() -> None:
    model, image = oracle(ORGAN), images(0.2)
    target = truth(model, image)
    heights: list[Tensor] = []

    def noting(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        height = margin(log_odds, target)
        heights.append(height.detach())
        return height

    APGD(L2(0.5), noting, 30)(model, image, target, SEEDS)
    optimum = margin(model(image), target) + 10 * 0.5 / image[0].numel() ** 0.5
    torch.testing.assert_close(torch.stack(heights).amax(0), optimum, rtol=1e-6, atol=0)


class Shown:
    """Log-odds are the image; it writes down what it is shown with gradients."""

    task = ORGAN

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, image: Tensor) -> LogOdds:
        if image.requires_grad:
            self.images.append(image.detach().flatten(1))
        return image * 1.0

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0.5


def test_the_first_step_goes_to_the_edge_of_the_ball() -> None:
    shown, image = Shown(), images(0.2)

    def upwards(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return log_odds.flatten(1).sum(1)

    attack = APGD(Linf(EPS), upwards, 3)
    attack(shown, image, image >= 0.5, SEEDS)
    torch.testing.assert_close(shown.images[0], attack.ball.sample(image, SEEDS).flatten(1))
    torch.testing.assert_close(shown.images[1], image.flatten(1) + EPS)


def test_a_step_worked_by_hand() -> None:
    """One pixel, its hill at 0.5 + 0.01 of a ball of 0.1: it overshoots, and a step is 3/4 new and 1/4 old."""
    shown = Shown()

    def hill(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return -(log_odds.flatten(1) - 0.51).square().sum(1)

    image = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    APGD(Linf(0.1), hill, 100)(shown, image, image > 0, [4])
    path = torch.cat(shown.images).flatten()
    first = path[0].item()
    second = 0.6 if first < 0.51 else 0.4
    assert path[1].item() == pytest.approx(second)
    # the full step of 0.2 back is cut to the ball, three quarters of it plus a quarter of the last move
    edge = 0.4 if second > 0.51 else 0.6
    third = min(max(second + 0.75 * (edge - second) + 0.25 * (second - first), 0.4), 0.6)
    assert path[2].item() == pytest.approx(third)
    # up to the first checkpoint nothing is halved: wide jumps; halving brings it home
    assert (path[1:22] - 0.51).abs().amax() > 0.05
    assert abs(path[-1].item() - 0.51) < 0.01
    assert (path - 0.51).abs().min() < 1e-3


def waves(x: Tensor, seed: int, progress: float) -> Tensor:
    """A hilly landscape over one number, another one for each seed; every third rises after a start that was higher."""
    a, b, c = (torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2).tolist()
    hills = torch.sin(60 * a * x + 6 * b) + 0.5 * torch.sin(170 * c * x + 6 * a) + 3 * b * x
    return hills if seed % 3 else hills + (2000.0 if progress == 0 else 1000 * progress - 2000)


@dataclass
class Written:
    """Auto-PGD of one number, written after algorithm 1 and conditions 1 and 2 of the paper.

    Attributes:
        path: the iterates whose gradient was asked for.
        even: checkpoints at which exactly 75 % of the steps paid.
        stuck: checkpoints at which condition 2 alone halved the step.
        returned: checkpoints at which the best iterate was another one.
    """

    path: list[float] = field(default_factory=list)
    even: int = 0
    stuck: int = 0
    returned: int = 0

    def climb(self, seed: int, middle: float, start: float, steps: int) -> "Written":
        def look(x: float) -> tuple[float, float]:
            at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            height = waves(at, seed, len(self.path) / steps)
            (slope,) = torch.autograd.grad(height, at)
            self.path.append(x)
            return height.item(), slope.sign().item()

        def cut(x: float) -> float:
            return min(max(x, middle - EPS), middle + EPS)

        x = before = start
        height, sign = look(x)
        best = (height, x, sign)
        eta, paid, halved, best_then, last = 2 * EPS, 0, True, height, 0
        for step in range(1, steps):
            z = cut(x + eta * sign)
            alpha = 1.0 if step == 1 else 0.75
            x, before = cut(x + alpha * (z - x) + (1 - alpha) * (x - before)), x
            new, sign = look(x)
            paid += new > height
            height = new
            best = max(best, (height, x, sign), key=lambda point: point[0])
            if step in checkpoints(steps):
                first, second = paid <= 0.75 * (step - last), not halved and best_then >= best[0]
                self.even += paid == 0.75 * (step - last)
                self.stuck += second and not first
                halved, best_then, last, paid = first or second, best[0], step, 0
                if halved:
                    eta /= 2
                    self.returned += x != best[1]
                    height, x, sign = best
        return self


def test_iterates_are_those_of_the_algorithm_as_it_is_written() -> None:
    """On hilly ground: steps that pay exactly as often as they must, a best that stands still, returns to it."""
    n = 60
    image = torch.full((n, 1, 1, 1), 0.5, dtype=torch.float64)

    def landscape(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return torch.stack([waves(x, seed, progress) for seed, x in enumerate(log_odds.flatten(1).sum(1))])

    written = []
    for steps in (20, 60):
        shown = Shown()
        APGD(Linf(EPS), landscape, steps)(shown, image, image > 0, range(n))
        path = torch.cat([x.view(1, n) for x in shown.images])
        each = [Written().climb(seed, 0.5, path[0, seed].item(), steps) for seed in range(n)]
        expected = torch.tensor([one.path for one in each], dtype=torch.float64).T
        torch.testing.assert_close(path, expected, rtol=0, atol=1e-12)
        written += each
    assert min(sum(vars(one)[event] for one in written) for event in ("even", "stuck", "returned")) > 0


def test_steps_are_halved_per_sample() -> None:
    """One sample's objective always rises and keeps the full step, the other's oscillates around its top."""
    shown = Shown()
    iterates: list[Tensor] = []

    def two(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        x = log_odds.flatten(1).sum(1)
        iterates.append(x.detach())
        return torch.stack([-(x[0] - 0.51).square(), 1000 * progress + 0 * x[1] + x[1]])

    image = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    APGD(Linf(0.1), two, 100)(shown, image, image > 0, [4, 5])
    path = torch.stack(iterates)
    assert (path[1:, 1] == 0.6).all()
    assert abs(path[-1, 0].item() - 0.51) < 0.01


def test_a_masked_objective_steers_and_its_unmasked_form_tells_whether_it_pays() -> None:
    """Once every pixel is lost the masked objective is 0 everywhere: judged by itself, its start would be its best."""
    image = images(0.02)
    model = oracle(ORGAN)
    target = truth(model, image)
    masked = APGD(Linf(EPS), masked_bce, 20)(model, image, target, SEEDS)
    assert (masked.harm == 1).all()


def test_what_it_returns_is_never_less_harmful_than_the_image() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = ~truth(model, image)  # a model that is all wrong: every change mends it

    def still(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return 0 * log_odds.flatten(1).sum(1)

    result = APGD(Linf(0.2), still, 5)(model, image, target, SEEDS)
    assert (result.harm == 1).all()


def test_a_wider_ball_is_left_before_anything_is_returned() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    for eps in (EPS, 0.7):  # twice 0.7 would be every image
        result = APGD(Linf(eps), bce, 10, radii=(2.0, 1.5, 1.0))(model, image, target, SEEDS)
        assert (result.size <= eps + 1e-12).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("apgd(steps=0)", "expected steps >= 1, got 0; write steps=1 or more"),
        ("apgd(restarts=0)", "expected restarts >= 1, got 0; write restarts=1 or more"),
        ("apgd(radii=(2.0, 1.5))", "that end with 1, got (2.0, 1.5); write (2, 1.5, 1)"),
        ("apgd(radii=(0.5, 1.0))", "radii of at least 1 that end with 1, got (0.5, 1.0); write"),
    ],
)
def test_wrong_options_are_told(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        registry.build(text, "attack")


def test_restarts_keep_the_worst_of_each_sample() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    single_run = APGD(Linf(EPS), steps=3)
    single = single_run(model, image, target, SEEDS)
    assert (replace(single_run, restarts=3)(model, image, target, SEEDS).harm >= single.harm).all()


def test_the_harm_of_an_iterate_is_its_own_where_gradients_were_taken_elsewhere() -> None:
    """Where the momentum leads, or of a smaller copy, the model answers something else than on the iterate."""
    model, image = oracle(ORGAN, "blurred_oracle"), images(0.2)
    target = truth(model, image)
    for options in ({"look_ahead": True, "momentum": 1.0}, {"diversity": 1.0}, {"look_ahead": True, "diversity": 0.5}):
        attack = PGD(Linf(0.1), bce, steps=3, **options)  # type: ignore[arg-type]
        result = attack(model, image, target, SEEDS)
        again = judge(model, Linf(0.1), result.image, image, target)
        torch.testing.assert_close(result.harm, again.harm)
        assert (result.harm > 0).all()


def test_a_wider_ball_that_would_hold_every_image_is_the_ball_itself() -> None:
    model, image = oracle(ORGAN), images(0.2)
    wide = APGD(Linf(0.5), bce, steps=10, radii=(2.0, 1.0))
    result = wide(model, image, truth(model, image), SEEDS)
    assert (result.size <= 0.5 + 1e-12).all()
    assert (result.harm == 1).all()
