"""The five losses of MedIS and what was released of them, against their formulas in numpy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg_attack import registry
from medseg_attack.threat.objectives.medis import BOUNDARY, LOSSES, RELEASED, SHARES, medis_combined
from medseg_attack.threat.objectives.medis import medis_combined_shukla2023 as combined_as_released

GRIDS = pytest.mark.parametrize("grid", [(40,), (7, 36), (3, 4, 33)], ids=str)


def entries(grid: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(len(grid))
    z = 2 * torch.randn(2, 3, *grid, generator=rng, dtype=torch.float64)
    return z, torch.rand(2, 3, *grid, generator=rng) < 0.4


def dice(p: np.ndarray, y: np.ndarray) -> float:
    return float((2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))


def logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def cross_entropy(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(y > 0, -np.log(logistic(z)), -np.log(logistic(-z)))


def weights(y: np.ndarray) -> np.ndarray:
    mean = ndimage.uniform_filter(y, BOUNDARY, mode="constant")
    return 1 + 5 * np.abs(mean - y)


def iou_loss(p: np.ndarray, y: np.ndarray) -> float:
    w = weights(y)
    return float(1 - ((w * p * y).sum() + 1) / ((w * (p + y - p * y)).sum() + 1))


def lovasz(z: np.ndarray, y: np.ndarray) -> float:
    """The sum over the hinges, from the largest, of what each adds to 1 - IoU when it is counted as wrong."""
    hinges, truth = (1 - (2 * y - 1) * z).ravel(), y.ravel()
    total, loss_before = 0.0, 0.0
    wrong = np.zeros(len(hinges), bool)
    for place in np.argsort(-hinges, kind="stable"):
        wrong[place] = True
        prediction = np.where(wrong, 1 - truth, truth) > 0
        both, either = (prediction & (truth > 0)).sum(), (prediction | (truth > 0)).sum()
        loss = 1 - both / either if either else 0.0
        total += max(hinges[place], 0) * (loss - loss_before)
        loss_before = loss
    return total


def of_one(z: np.ndarray, y: np.ndarray) -> list[float]:
    """The losses of one image, (classes, *grid), in the order of `LOSSES`."""
    p, classes = logistic(z), range(len(z))
    each = [dice(p[k], y[k]) for k in classes]
    of_boundary = [(weights(y[k]) * cross_entropy(z[k], y[k])).sum() / weights(y[k]).sum() for k in classes]
    return [
        float(np.mean(of_boundary) + np.mean([iou_loss(p[k], y[k]) for k in classes])),
        float(np.log(np.cosh(1 - np.mean(each)))),
        float(cross_entropy(z, y).mean() + 1 - np.mean(each)),
        float(np.mean(np.log(each) ** 2) / 2 + (cross_entropy(z, y) ** 2).mean() / 2),
        float(np.mean([lovasz(z[k], y[k]) for k in classes])),
    ]


def of_one_as_released(z: np.ndarray, y: np.ndarray) -> list[float]:
    """Stretched probabilities stand for logits, and where the release took them for probabilities, for these."""
    p, classes = logistic(z), range(len(z))
    s = (p - p.min()) / (p.max() - p.min() + 1e-8)
    each, twice = [dice(s[k], y[k]) for k in classes], [dice(logistic(s[k]), y[k]) for k in classes]
    entry = cross_entropy(s, y).mean()
    return [
        float(entry + np.mean([iou_loss(logistic(s[k]), y[k]) for k in classes])),
        float(np.log(np.cosh(1 - np.mean(each)))),
        float(entry + 1 - np.mean(twice)),
        float(np.mean(np.log(1 - np.array(each)) ** 2) / 2 + np.log(entry) ** 2 / 2),
        float(np.mean([lovasz(s[k], y[k]) for k in classes])),
    ]


@GRIDS
def test_each_loss_is_its_formula(grid: tuple[int, ...]) -> None:
    z, y = entries(grid)
    expected = np.array([of_one(one.numpy(), mask.double().numpy()) for one, mask in zip(z, y, strict=True)])
    for n, loss in enumerate(LOSSES):
        assert loss(z, y, 1.0).tolist() == pytest.approx(expected[:, n], rel=1e-6), registry.spec(loss)
    assert medis_combined(z, y).tolist() == pytest.approx(expected @ np.array([0.21, 0.18, 0.20, 0.15, 0.26]))
    assert sum(SHARES) == pytest.approx(1)


@GRIDS
def test_each_released_loss_is_its_formula(grid: tuple[int, ...]) -> None:
    z, y = entries(grid)
    expected = np.array(
        [of_one_as_released(one.numpy(), mask.double().numpy()) for one, mask in zip(z, y, strict=True)]
    )
    for n, loss in enumerate(RELEASED):
        assert loss(z, y, 1.0).tolist() == pytest.approx(expected[:, n], rel=1e-6), registry.spec(loss)
    assert combined_as_released(z, y).tolist() == pytest.approx(expected @ np.array(SHARES))


def test_the_released_exp_log_is_finite_where_dice_is_1() -> None:
    """What is certain and right has a Dice of 1 after it was stretched: 1 - Dice is held to 1e-7."""
    y = torch.tensor([True, True, False, False]).view(1, 1, 4)
    z = torch.where(y, 40.0, -40.0).double()
    entry = np.mean([np.log1p(np.exp(-1)), np.log(2)])
    (value,) = registry.build("exp_log_shukla2023", "objective")(z, y, 1.0).tolist()
    assert value == pytest.approx(np.log(1e-7) ** 2 / 2 + np.log(entry) ** 2 / 2, rel=2e-2)
