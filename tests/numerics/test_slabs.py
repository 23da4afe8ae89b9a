"""What is computed in slabs has the bits of what is computed at once, and makes no float64 of a whole volume."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import fgsm
from medseg_attack.data.prepared.windows import ends, percentiles, window_rule
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics import overlap
from medseg_attack.metrics.visibility import visibility
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.numerics import noise, samples, slabs
from medseg_attack.numerics.flows import warped
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Ball, Batch, Case, Storage, Task, Window

TASK = Task("volume", ("organ",))
GRID = (9, 14, 13)


def scan(dtype: torch.dtype = torch.int16) -> Case:
    draw = torch.Generator().manual_seed(0)
    stored = torch.randint(-200, 900, (1, *GRID), generator=draw).to(dtype)
    native = stored.double() * 1.5 - 3
    image = ((native + 100) / 900).clamp(0, 1).float()
    target = torch.rand((1, *GRID), generator=draw) < 0.3
    return Case("v", "v", "g", image, target, (2.0, 1.0, 1.0), Window(-100, 800), storage=Storage(stored, 1.5, -3.0))


def in_slabs(monkeypatch: pytest.MonkeyPatch, planes: int) -> None:
    for module in (slabs, noise, overlap):
        monkeypatch.setattr(module, "SLAB", planes * GRID[1] * GRID[2])


def everything(ball: Ball) -> list[Any]:
    """Whatever is computed of a volume in slabs."""
    case = scan()
    batch, values = Batch.of([case]), StoredValues.of([case], "cpu")
    assert values is not None
    change = 0.03 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))
    x = ball.project(batch.image + change, batch.image)
    raw = values.raw_nearest(x, batch.image, ball)
    shown = values.image(raw, batch.image)
    pred = shown > 0.4
    seen = visibility(torch.rand((1, 1, 9, 20, 20)), torch.zeros((1, 1, 9, 20, 20)), [0.1])[0]
    return [
        *(tensor.tolist() for tensor in (x, raw, shown, ball.size(x, batch.image), noise.noise_of(batch.image))),
        overlap.measure((pred, batch.target)),
        (seen.ssim, seen.ssim_body, seen.ssim_min),
        values.nearest(x, batch.image, ball).dtype,
    ]


@pytest.mark.parametrize("planes", [1, 2, 5])
@pytest.mark.parametrize("ball", [Linf(0.02), L2(0.5)], ids=str)
def test_slabs_change_no_bit(ball: Ball, planes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = everything(ball)
    in_slabs(monkeypatch, planes)
    torch.manual_seed(0)
    assert everything(ball) == whole


class Largest(TorchDispatchMode):
    """The number of values of the largest tensor of some types that is computed."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes = dtypes
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in self.dtypes:
            self.values = max(self.values, result.numel())
        return result


def test_an_attack_on_a_volume_through_windows_makes_no_float64_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = SegModel(SlidingWindow(torch.nn.Conv3d(1, 1, 3, padding=1), (4, 8, 8)), TASK, dims=3)
    batch = Batch.of([scan()])
    with frozen(model):
        (whole,) = attack_chunk(model, [batch], [fgsm(Linf(0.02))])
        in_slabs(monkeypatch, 2)
        with Largest(torch.float64) as largest:
            (cut,) = attack_chunk(model, [batch], [fgsm(Linf(0.02))])
    assert largest.values <= 2 * GRID[1] * GRID[2]
    for row, other in zip(whole.rows, cut.rows, strict=True):
        assert replace(row, extra={}) == replace(other, extra={})
        assert row.extra == pytest.approx(other.extra, rel=1e-12, nan_ok=True)  # sums of floats in another order


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.float32], ids=str)
def test_a_volume_moves_in_slabs_and_no_float64_of_all_of_it_is_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, flow = scan(dtype), 3 * torch.randn((1, 3, *GRID), generator=torch.Generator().manual_seed(1))
    values = StoredValues.of([case], "cpu")
    assert values is not None
    stored, image = values.warped(flow).raw, warped(case.image[None], flow)
    in_slabs(monkeypatch, 3)
    with Largest(torch.float64) as largest:
        assert torch.equal(values.warped(flow).raw, stored)
    assert largest.values <= 3 * GRID[1] * GRID[2]  # a plane of a flow of three axes
    assert torch.equal(warped(case.image[None], flow), image)


def test_no_small_result_stays_between_the_large_ones_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stand behind a slab's arrays, and the allocator would put those of the next slab behind it."""
    living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def total(part: torch.Tensor) -> torch.Tensor:
        nonlocal most
        result = part.sum()
        living.add(result)
        most = max(most, len(living))
        return result

    in_slabs(monkeypatch, 1)
    assert slabs.sum_of_slabs(total, torch.ones(1, 1, *GRID)) == np.prod(GRID)
    assert most <= 3  # of 9


def test_one_volume_is_stacked_without_a_copy() -> None:
    case = scan()
    batch, values = Batch.of([case]), StoredValues.of([case], "cpu")
    assert batch.image.data_ptr() == case.image.data_ptr()
    assert values is not None
    assert case.storage is not None
    assert values.raw.data_ptr() == case.storage.stored.data_ptr()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["floats", "whole", "few", "tiny"]), st.booleans())
def test_percentiles_of_slices_are_those_of_all_values_at_once(seed: int, kind: str, holed: bool) -> None:
    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(1, 9, 3))
    values = {
        "floats": draw.normal(0, 300, shape),
        "whole": draw.integers(-1000, 1000, shape) * 0.37 - 3,
        "few": draw.integers(-1, 2, shape) * 1.0,
        "tiny": draw.normal(0, 1e-305, shape),
    }[kind]
    if holed:
        values[(draw.random(shape) < 0.3) & (np.arange(values.size) > 0).reshape(shape)] = np.nan
    measured = values[~np.isnan(values)]
    assert percentiles(values, (0.5, 50, 99.5)) == np.percentile(measured, (0.5, 50, 99.5)).tolist()
    assert ends(values) == (measured.min(), measured.max())


@pytest.mark.parametrize("text", ["percentile", "range", "slice_max", "-5,5"])
def test_a_window_is_computed_of_one_slice_at_a_time(text: str) -> None:
    class OneByOne(list[Any]):
        """Slices of which no two may be put together."""

        def __array__(self, *_: object, **__: object) -> Any:
            raise AssertionError("all slices at once")

    values = np.random.default_rng(0).normal(0, 300, (3, 6, 7))
    assert np.array_equal(window_rule(text)(OneByOne(values)), window_rule(text)(values))


IN_SLABS = [  # the others compare entries of a whole volume, or put several of these together
    *("bce", "ce", "soft_dice", "focal", "margin", "js", "js_softmax", "margin_softmax", "spherical", "dlr"),
    *("masked_ce", "progressive_ce", "cosine_ce", "masked_spherical", "masked_bce", "masked_margin"),
    *("progressive_bce", "cosine_bce", "bce_swapped", "focal_swapped", "dice_swapped", "dice_focal", "bce_dice"),
]


@pytest.mark.parametrize("name", IN_SLABS)
def test_an_objective_of_a_volume_is_computed_in_slabs_with_the_same_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = registry.build(name, "objective")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, *GRID), generator=generator)
    target = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).bool()
    log_odds = (3 * torch.randn(target.shape, generator=generator)).requires_grad_()
    whole = objective(log_odds, target, 0.3)
    (grad,) = torch.autograd.grad(whole.sum(), log_odds)
    in_slabs(monkeypatch, 2)
    with Largest(torch.float32, torch.float64) as largest:
        cut = objective(log_odds, target, 0.3)
    assert largest.values <= 2 * log_odds.numel() / GRID[0] * 3  # the planes of a slab, a few sums of them at once
    assert torch.allclose(cut, whole, rtol=1e-5, atol=1e-7)
    (grad_cut,) = torch.autograd.grad(cut.sum(), log_odds)
    # sums of floats in another order; and kernels compute the last few values of a tensor one by one
    assert torch.allclose(grad_cut, grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["bce", "dice_focal"])
@pytest.mark.parametrize("slab", [4096, 2048])  # values: a sample's, or half of them
def test_an_objective_of_a_sample_is_the_same_whatever_stands_beside_it(
    name: str, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a batch of slices is larger than a slab. A row holds whole vectors of a kernel."""
    objective = registry.build(name, "objective")
    log_odds = torch.randn(5, 2, 8, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = log_odds.detach() > 0.3
    monkeypatch.setattr(slabs, "SLAB", slab)

    def height_and_slope(x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height = objective(x, target, 1.0)
        return height.detach(), torch.autograd.grad(height.sum(), x)[0]

    together = height_and_slope(log_odds, target)
    for n in range(5):
        alone = height_and_slope(log_odds[n : n + 1], target[n : n + 1])
        assert all(torch.equal(ours[n : n + 1], own) for ours, own in zip(together, alone, strict=True))


def test_the_gradient_of_a_gradient_passes_through_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-2, 2, 4 * 9).view(1, 1, 4, 3, 3).requires_grad_()
    target = torch.zeros_like(x, dtype=torch.bool)

    def curvature() -> torch.Tensor:
        (grad,) = torch.autograd.grad(bce(x, target).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    whole = curvature()
    monkeypatch.setattr(slabs, "SLAB", 9)
    assert torch.allclose(curvature(), whole)


@pytest.mark.parametrize("random", [torch.rand, torch.randn])
@pytest.mark.parametrize("n", [1, 31, 32, 47, 48, 49, 64, 1001])
def test_numbers_are_drawn_in_slabs_as_at_once(random: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = samples.draw(random, torch.zeros(2, 1, n), [3, 4])
    monkeypatch.setattr(samples, "SLAB", 32)
    assert torch.equal(samples.draw(random, torch.zeros(2, 1, n), [3, 4]), at_once)


def test_a_straight_through_value_takes_no_memory_of_its_own() -> None:
    value, like = torch.rand(5), torch.rand(5, requires_grad=True)
    assert samples.straight_through(value, 2 * like).data_ptr() == value.data_ptr()
