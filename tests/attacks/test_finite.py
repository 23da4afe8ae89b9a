"""What a model that guards its gradients knows of them: which were lost, and which were 0 everywhere."""

import torch
from helpers import blobs
from torch import Tensor

from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.types import LogOdds, Mask

CASES = blobs.batch(4).cases


class Faulty:
    """Log-odds x - 0.5; of four samples the first has a slope on its left half, the second rises nowhere.

    The third has a slope of NaN at one pixel, and the fourth an answer of NaN there.
    """

    task = blobs.TASK
    weight = torch.ones(4, 1, 6, 6)
    weight[0, :, :, 3:] = 0
    weight[1] = 0

    def __call__(self, image: Tensor) -> LogOdds:
        missing = torch.zeros_like(image)
        missing[3, :, 0, 0] = torch.nan
        log_odds = self.weight * (image - 0.5) + missing
        corner = image[2, :, 0, 0]
        log_odds[2, :, 0, 0] += (corner - corner.detach()).abs().sqrt()  # 0, with a slope of NaN
        return log_odds

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds > 0


def test_it_knows_the_cases_whose_gradients_and_answers_are_lost_and_those_without_a_slope() -> None:
    model = FiniteModel(Faulty(), CASES)
    image = torch.full((4, 1, 6, 6), 0.75).requires_grad_()
    log_odds = model(image)
    (grad,) = torch.autograd.grad(log_odds.sum(), image)
    expected = Faulty.weight.clone()
    expected[2:, :, 0, 0] = 0
    assert torch.equal(grad, expected)
    assert model.lost_gradients.cases == [CASES[2]]
    assert model.lost_answers.cases == [CASES[3]]
    assert model.flat_cases == [CASES[1]]
    assert torch.isfinite(log_odds).all()
    assert log_odds[3, 0, 0, 0] < 0  # the class is not there


def test_one_slope_in_any_pass_is_enough() -> None:
    class Rising(Faulty):
        weight = Faulty.weight.clone()

    model = FiniteModel(Rising(), CASES)
    for slope in (0.0, -1.0, 0.0):
        Rising.weight[1, :, 2, 2] = slope
        image = torch.full((4, 1, 6, 6), 0.75).requires_grad_()
        torch.autograd.grad(model(image).sum(), image)
    assert model.flat_cases == []
    assert model.lost_gradients.cases == [CASES[2]]
