"""Noise and shuffled changes: what a draw has in common with every other of its kind."""

from dataclasses import dataclass

import pytest
import torch
from helpers.oracle_scene import ORGAN, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.controls.shuffled import Shuffled
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Task

SEEDS = [1, 2, 3]
IMAGE = images(0.2)
EPS = 0.03


def change(text: str, seeds: list[int] = SEEDS) -> Tensor:
    model = oracle(ORGAN)
    result: Adversarial = registry.build(text, "attack")(model, IMAGE, truth(model, IMAGE), seeds)
    return (result.image - IMAGE) / EPS


def test_noise_of_signs_moves_every_pixel_by_the_whole_ball_up_or_down() -> None:
    signs = change(f"noise(linf({EPS}))")
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert signs.flatten(1).mean(1).abs().max() < 0.15  # 480 coins: 3 standard deviations are 0.14
    torch.testing.assert_close(change(f"noise(linf({EPS}))", [3, 9, 1])[[2, 0]], signs[[0, 2]])


def test_uniform_noise_fills_the_ball() -> None:
    shares = change(f"noise(linf({EPS}), draw='uniform')")
    assert shares.abs().max() <= 1 + 1e-12
    quarters = torch.histc(shares, 4, -1, 1) / shares.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25, dtype=torch.float64), atol=0.05, rtol=0)


def test_gaussian_noise_is_cut_where_a_deviation_of_the_uniform_one_says() -> None:
    """Uniform noise has a root mean square of 1 / sqrt(3): 8.3 % of normal numbers lie beyond sqrt(3) of it."""
    shares = change(f"noise(linf({EPS}), draw='gaussian')")
    normal = torch.distributions.Normal(0.0, 1.0)
    whole = (shares.abs() > 1 - 1e-9).double().mean()
    assert whole.item() == pytest.approx(2 * (1 - normal.cdf(torch.tensor(3**0.5)).item()), abs=0.025)
    within_half = (shares.abs() < 0.5).double().mean()
    assert within_half.item() == pytest.approx(2 * normal.cdf(torch.tensor(3**0.5 / 2)).item() - 1, abs=0.05)
    assert shares.mean().abs() < 0.05


@dataclass(frozen=True)
class Ramp:
    """Adds to the first sample the ramp 1, 2, ... in units of EPS / 480, to the second twice as much, ..."""

    ball: Ball = Linf(3 * EPS)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: object) -> Adversarial:
        ramp = torch.arange(1, 481, dtype=torch.float64).view(1, 1, 24, 20) * EPS / 480
        copies = image.expand(-1, 2, -1, -1)
        return judge(model, self.ball, copies + ramp * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1), copies, target)


class Two:
    """The linear model on the mean of two channels."""

    task: Task = ORGAN

    def __call__(self, image: Tensor) -> Tensor:
        return 10 * (image.mean(1, keepdim=True) - 0.5)

    def decide(self, log_odds: Tensor) -> Tensor:
        return log_odds >= 0


def test_a_shuffled_change_has_the_same_numbers_in_other_places_the_same_in_all_channels() -> None:
    model = Two()
    result = Shuffled(Ramp())(model, IMAGE, IMAGE >= 0.5, SEEDS)  # type: ignore[arg-type]
    places = ((result.image - IMAGE) * 480 / EPS / torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)).round().flatten(2)
    assert torch.equal(places.sort(2).values, torch.arange(1, 481, dtype=torch.float64).expand(3, 2, -1))
    assert torch.equal(places[:, 0], places[:, 1])
    in_order = torch.arange(1, 481, dtype=torch.float64)
    orders = [in_order, *places[:, 0]]
    same = [(a == b).sum().item() for n, a in enumerate(orders) for b in orders[:n]]
    assert max(same) < 10  # of two random orders one place is the same, on average


def test_noise_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="draw"):
        registry.build("noise(draw='normal')", "attack")
