"""Objectives against their formulas: the gradient table, gradcheck, per-sample behaviour."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.threat.objectives.losses import (
    bce,
    bce_dice,
    ce,
    dice_focal,
    focal,
    js,
    js_softmax,
    margin,
    soft_dice,
)
from medseg_attack.threat.objectives.per_task import for_task, progress_of
from medseg_attack.threat.objectives.softmax import dlr, margin_softmax, spherical
from medseg_attack.threat.objectives.swapped import bce_swapped, dice_focal_swapped, dice_swapped, focal_swapped
from medseg_attack.threat.objectives.weighted import (
    balanced_bce,
    balanced_ce,
    cosine_bce,
    cosine_ce,
    masked_bce,
    masked_ce,
    masked_margin,
    masked_spherical,
    progressive_bce,
    progressive_ce,
)
from medseg_attack.types import Objective, Task

OBJECTIVES = [name for name in registry.names("objective") if name != "toward"]  # needs a task: test_goals.py
DETACHED = ("cosine_bce", "cosine_ce")  # their weights are no part of the gradient


def truths(name: str, y: torch.Tensor) -> torch.Tensor:
    """Masks that the objective is for: one class per pixel where it compares classes."""
    if not registry.find(name).exclusive:
        return y
    return torch.nn.functional.one_hot(y.long().argmax(1), y.shape[1]).movedim(-1, 1).bool()


def gradient(objective: Objective, z: list[float], y: int) -> torch.Tensor:
    """N times the gradient per entry, for entries that are alone in their sample."""
    log_odds = torch.tensor(z, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_()
    target = torch.full_like(log_odds, y, dtype=torch.bool)
    return torch.autograd.grad(objective(log_odds, target, 1.0).sum(), log_odds)[0].flatten()


MARGINS = [-5.0, -2.0, 0.0, 2.0, 5.0, 8.0]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (bce, [-0.9933, -0.8808, -0.5, -0.1192, -0.006693, -3.354e-4]),
        (focal, [-1.046, -1.077, -0.2983, -0.004871, -8.97e-7, -1.13e-10]),
        (margin, [-1.0] * 6),
        (js, [-0.01666, -0.1176, -0.1373, -0.03983, -0.002315, -1.162e-4]),
        (cosine_bce, [-0.006693, -0.1181, -0.3536, -0.1181, -0.006693, -3.354e-4]),
    ],
)
def test_gradients_match_the_formulas(objective: Objective, expected: list[float]) -> None:
    result = gradient(objective, MARGINS, 1)
    assert result.tolist() == pytest.approx(expected, rel=1e-3)  # the digits that the table gives
    # a wrong background entry is pushed the other way, by as much
    mirrored = gradient(objective, [-m for m in MARGINS], 0)
    torch.testing.assert_close(mirrored, -result)


def test_gradients_match_closed_forms_to_1e6() -> None:
    m = torch.tensor(MARGINS, dtype=torch.float64)
    q, p = torch.sigmoid(-m), torch.sigmoid(m)
    torch.testing.assert_close(gradient(bce, MARGINS, 1), -q, atol=1e-9, rtol=0)
    exact = -(q**2) * (q + 2 * (1 - q) * torch.nn.functional.softplus(-m))
    torch.testing.assert_close(gradient(focal, MARGINS, 1), exact, atol=1e-9, rtol=0)
    # one foreground pixel: I = p, U = p + 1, s = 1
    dice = p * (1 - p) * ((2 * p + 1) / (p + 2) ** 2 - 2 / (p + 2))
    torch.testing.assert_close(gradient(soft_dice, MARGINS, 1), dice, atol=1e-9, rtol=0)


def test_ce_is_the_softmax_cross_entropy_of_an_exclusive_task() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64) * 5
    labels = torch.randint(4, (2, 5, 6))
    log_p = logits.log_softmax(1)
    log_odds = log_p - torch.log1p(-log_p.exp())
    target = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).bool()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none").mean((1, 2))
    torch.testing.assert_close(ce(log_odds, target), expected)


def test_swapped_losses_are_monais_with_swapped_arguments() -> None:
    from monai.losses import DiceLoss, FocalLoss

    torch.manual_seed(0)
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64) * 4
    y = torch.rand(1, 3, 8, 8) < 0.3
    mask = y.to(z)
    torch.testing.assert_close(bce_swapped(z, y)[0], torch.nn.functional.binary_cross_entropy_with_logits(mask, z))
    expected = FocalLoss(gamma=2.0)(mask, z).double()  # MONAI computes it in float32
    torch.testing.assert_close(focal_swapped(z, y)[0], expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dice_swapped(z, y)[0], DiceLoss(sigmoid=True)(mask, z), atol=1e-6, rtol=1e-6)


def test_swapped_gradients_match_the_derivation() -> None:
    assert gradient(bce_swapped, MARGINS, 1).tolist() == pytest.approx([-1.0] * 6, abs=1e-9)
    assert gradient(bce_swapped, MARGINS, 0).tolist() == pytest.approx([0.0] * 6, abs=1e-9)
    result = gradient(focal_swapped, [-5, -2, 0, 2, 5], 1).tolist()
    assert result == pytest.approx([-1.0004, -1.0742, -1.2895, 0.00364, 2.1e-7], rel=5e-3)
    below, above = gradient(focal_swapped, [1.5914, 1.5915], 1).tolist()
    assert below < 0 < above


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in DETACHED])
def test_gradcheck(name: str) -> None:
    torch.manual_seed(1)
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = truths(name, torch.rand(2, 3, 4, 5) < 0.4)
    objective = registry.build(name, "objective")
    assert gradcheck(lambda x: objective(x, y, 0.5), (z,))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(2)
    z = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    y = truths(name, torch.rand(4, 3, 6, 5) < 0.3)
    objective = registry.build(name, "objective")
    together = objective(z, y, 0.5)
    assert together.shape == (4,)
    alone = torch.cat([objective(z[i : i + 1], y[i : i + 1], 0.5) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_finite_on_empty_and_full_masks(name: str, scale: float) -> None:
    z = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * scale).requires_grad_()
    y = truths(name, torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).bool())
    value = registry.build(name, "objective")(z, y, 0.0)
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()


def test_soft_dice_can_climb_on_an_empty_slice() -> None:
    z = torch.full((1, 1, 8, 8), -4.0, requires_grad=True)
    (grad,) = torch.autograd.grad(soft_dice(z, torch.zeros(1, 1, 8, 8, dtype=torch.bool)).sum(), z)
    assert (grad > 1e-4).all()


def test_harm_of_masks_worked_by_hand() -> None:
    target = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    target[:, 0, 0] = True  # two pixels of class 0, none of class 1
    pred = torch.zeros_like(target)
    pred[0, 0, 0, 0] = True  # one of the two: Dice 2/3; class 1 rightly empty: 1
    pred[1, 0, 0] = True
    pred[1, 1, 1, 1] = True  # class 0 right, class 1 hallucinated: 0
    assert harm(pred, target).tolist() == pytest.approx([(1 / 3 + 0) / 2, 1 / 2, 1 / 2])
    assert not math.isnan(harm(pred[:, 1:], target[:, 1:]).sum().item())


def test_values_worked_by_hand() -> None:
    """Every organ weighs the same, however large, and a sum of two losses is their sum."""
    target = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    target[0, 0, 0] = True  # of class 0 the upper two pixels, of class 1 all but one
    target[0, 1] = torch.tensor([[True, True], [True, False]])
    sure = torch.where(target, 60.0, -60.0).double()
    sure[0, 1] = -60  # class 0 is right; class 1 is result nowhere: (0 + 1) / (0 + 3 + 1)
    assert soft_dice(sure, target).item() == pytest.approx((0 + 3 / 4) / 2)
    assert soft_dice(sure, target, smooth=2).item() == pytest.approx((0 + 3 / 5) / 2)
    open_, half = torch.zeros(1, 2, 2, 2, dtype=torch.float64), math.log(2)
    dice = 1 - ((2 + 1) / (2 + 2 + 1) + (3 + 1) / (2 + 3 + 1)) / 2  # every probability is a half
    assert bce(open_, target).item() == pytest.approx(half)
    assert focal(open_, target).item() == pytest.approx(half / 4)
    assert focal(open_, target, gamma=1).item() == pytest.approx(half / 2)
    assert soft_dice(open_, target).item() == pytest.approx(dice)
    assert dice_focal(open_, target).item() == pytest.approx(dice + half / 4)
    assert bce_dice(open_, target).item() == pytest.approx(dice + half)
    assert ce(open_, target).item() == pytest.approx(half * 5 / 4)  # 5 entries of organs, 4 pixels
    assert margin(open_ + 3, target).item() == pytest.approx(-3 * (5 - 3) / 8)
    both = dice_swapped(sure, target) + focal_swapped(sure, target)
    assert dice_focal_swapped(sure, target).item() == pytest.approx(both.item())


M = torch.tensor(MARGINS, dtype=torch.float64)
RIGHT = (M >= 0).double()


@pytest.mark.parametrize(
    ("objective", "exact"),
    [
        (masked_bce, -RIGHT * torch.sigmoid(-M)),
        (masked_margin, -RIGHT),
        # alone in its sample an entry is half of what balanced_bce averages
        (balanced_bce, -RIGHT * torch.sigmoid(-M) / 2),
        (lambda z, y, _: progressive_bce(z, y, 0.0), -RIGHT * torch.sigmoid(-M)),
        (lambda z, y, _: progressive_bce(z, y, 1.0), -torch.sigmoid(-M) / 2),
        (lambda z, y, _: progressive_bce(z, y, 2 / 3), -(RIGHT * 2 / 3 + (1 - RIGHT) / 3) * torch.sigmoid(-M)),
        (cosine_bce, -torch.sigmoid(M) * torch.sigmoid(-M) / (torch.sigmoid(M) ** 2 + torch.sigmoid(-M) ** 2).sqrt()),
        (js, torch.sigmoid(M) * torch.sigmoid(-M) / 2 * torch.log(torch.sigmoid(M) / (1 + torch.sigmoid(M)))),
    ],
    ids=[
        "masked_bce",
        "masked_margin",
        "balanced_bce",
        "progressive-0",
        "progressive-1",
        "progressive-2/3",
        "cosine",
        "js",
    ],
)
def test_dense_gradients_match_closed_forms(objective: Objective, exact: torch.Tensor) -> None:
    torch.testing.assert_close(gradient(objective, MARGINS, 1), exact, atol=1e-9, rtol=0)


def test_a_tie_counts_as_the_decision_does() -> None:
    """Log-odds of 0 are organ: right where it is, wrong where it is not."""
    assert gradient(masked_margin, [0.0], 1).item() == -1
    assert gradient(masked_margin, [0.0], 0).item() == 0


def test_balanced_bce_weighs_the_sides_of_a_class_alike() -> None:
    z = torch.tensor([2.0, -1.0, -3.0, 0.5], dtype=torch.float64).view(1, 1, 2, 2)
    y = torch.tensor([True, False, False, False]).view(1, 1, 2, 2)
    outside = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3)) + 0) / 3  # the last is wrong already
    assert balanced_bce(z, y).item() == pytest.approx((math.log1p(math.exp(-2)) + outside) / 2)


def logits_and_gradient(objective: Objective, u: list[float], label: int, progress: float = 1.0) -> list[float]:
    """Value and gradient with respect to the logits of one pixel of an exclusive task."""
    logits = torch.tensor(u, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()
    target = torch.zeros_like(logits, dtype=torch.bool)
    target[0, label] = True
    value = objective(softmax_log_odds(logits), target, progress)
    return [value.item(), *torch.autograd.grad(value.sum(), logits)[0].flatten().tolist()]


@pytest.mark.parametrize(("u", "label"), [((3, 1, 0, -1), 0), ((3, 1, 0, -1), 1), ((0.2, 0.1, -0.4), 2)])
def test_softmax_forms_match_their_formulas_in_logits(u: tuple[float, ...], label: int) -> None:
    logits = torch.tensor(u, dtype=torch.float64)
    p, right = logits.softmax(0), float(logits.argmax() == label)
    one = torch.nn.functional.one_hot(torch.tensor(label), len(u)).double()
    nll, of_ce = -p[label].log(), p - one
    expected = {
        masked_ce: (right * nll, right * of_ce),
        progressive_ce: ((right * 0.8 + (1 - right) * 0.2) * nll, (right * 0.8 + (1 - right) * 0.2) * of_ce),
        cosine_ce: (p[label] / p.norm() * nll, p[label] / p.norm() * of_ce),
        balanced_ce: (right * nll / len(u), right * of_ce / len(u)),
        js_softmax: (
            (torch.log(2 / (1 + p[label])) + (p * torch.log(2 * p / (one + p))).sum()) / 2,
            p[label] / 2 * torch.log(p[label] / (1 + p[label])) * (one - p),
        ),
    }
    for objective, (value, grad) in expected.items():
        result = logits_and_gradient(objective, list(u), label, progress=0.4)
        assert result == pytest.approx([float(value), *grad.tolist()], abs=1e-9), registry.spec(objective)


def test_margins_of_logits() -> None:
    assert logits_and_gradient(margin_softmax, [3, 1, 0, -1], 0) == pytest.approx([-2, -1, 1, 0, 0], abs=1e-9)
    assert logits_and_gradient(margin_softmax, [3, 1, 0, -1], 2) == pytest.approx([3, 1, 0, -1, 0], abs=1e-9)
    assert logits_and_gradient(dlr, [3, 1, 0, -1], 0)[0] == pytest.approx(-2 / 3)
    assert logits_and_gradient(dlr, [3, 1, 0, -1], 1)[0] == pytest.approx(2 / 3)


def test_spherical_is_blind_to_the_scale_and_to_the_sum_of_logits() -> None:
    u = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    centred = u - u.mean()
    for scale, offset in ((1, 0), (20, 0), (1, 7)):
        result = logits_and_gradient(spherical, (scale * u + offset).tolist(), 1)[0]
        assert result == pytest.approx((-centred[1] / centred.norm()).item())
    unit, length = centred / centred.norm(), centred.norm()
    one = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    slope = -(one - one.mean() - unit * unit[1]) / length
    assert logits_and_gradient(spherical, u.tolist(), 1)[1:] == pytest.approx(slope.tolist(), abs=1e-9)
    assert logits_and_gradient(masked_spherical, u.tolist(), 1) == pytest.approx([0, 0, 0, 0])  # lost already
    assert logits_and_gradient(masked_spherical, u.tolist(), 0) == pytest.approx(
        logits_and_gradient(spherical, u.tolist(), 0)
    )


def test_cosine_of_softmax_is_the_papers_and_not_that_of_sigmoids() -> None:
    """Logits (5, 0, 0): weights .99995 and .0067; a sigmoid's would be .815 and .410."""
    for label, weight in ((0, 0.99995), (1, 0.0067)):
        value, *_ = logits_and_gradient(cosine_ce, [5, 0, 0], label)
        assert value / logits_and_gradient(ce, [5, 0, 0], label)[0] == pytest.approx(weight, abs=5e-5)


def test_dlr_of_two_classes_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="the third, got 2"):
        dlr(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2, dtype=torch.bool))


WITH_SOFTMAX_FORM = [name for name in OBJECTIVES if registry.find(name).softmax]


@pytest.mark.parametrize("name", WITH_SOFTMAX_FORM)
def test_attacks_climb_the_form_that_suits_the_task(name: str) -> None:
    exclusive, overlapping = Task("e", ("background", "a", "b"), exclusive=True), Task("o", ("a", "b"))
    per_entry, softmax = registry.build(name, "objective"), registry.find(name).softmax
    assert for_task(per_entry, exclusive) is softmax
    assert for_task(softmax, exclusive) is softmax
    assert for_task(per_entry, overlapping) is per_entry
    with pytest.raises(InputError, match=rf"take {name}$"):
        for_task(softmax, overlapping)


def test_an_objective_without_a_form_of_its_own_is_climbed_as_it_is_or_refused() -> None:
    exclusive, overlapping = Task("e", ("background", "a", "b"), exclusive=True), Task("o", ("a", "b"))
    assert {"js", "masked_bce", "cosine_bce"} <= set(WITH_SOFTMAX_FORM)
    assert for_task(cosine_bce, exclusive) is cosine_ce
    assert for_task(dlr, exclusive) is dlr
    assert for_task(bce, exclusive) is bce
    with pytest.raises(InputError, match=r"take margin$"):
        for_task(dlr, overlapping)


def test_steps_are_judged_by_the_objective_without_its_weights() -> None:
    unweighted = {masked_bce: bce, balanced_ce: ce, progressive_bce: bce, masked_margin: margin}
    assert {objective: progress_of(objective) for objective in unweighted} == unweighted
    assert progress_of(masked_spherical) is spherical
    assert [progress_of(objective) for objective in (bce, cosine_bce, cosine_ce, dlr)] == [None] * 4


def test_balanced_bce_counts_a_single_pixel_as_one_on_either_side() -> None:
    z = torch.tensor([2.0, 1.0, 3.0, -1.5], dtype=torch.float64).view(1, 1, 2, 2)
    y = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    inside = sum(math.log1p(math.exp(-m)) for m in (2.0, 1.0, 3.0)) / 3
    assert balanced_bce(z, y).item() == pytest.approx((inside + math.log1p(math.exp(-1.5))) / 2)
    assert balanced_bce(z, ~y).item() == pytest.approx(0)
    whole = balanced_bce(z.abs(), torch.ones_like(y)).item()  # there is no outside
    assert whole == pytest.approx((inside * 3 + math.log1p(math.exp(-1.5))) / 4 / 2)
