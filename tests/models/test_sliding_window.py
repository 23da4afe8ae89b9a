"""Sliding windows: MONAI's answer, the gradient of the full graph, and the same random numbers in both passes."""

from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.models import sliding_window
from medseg_attack.models.segmodel import SegModel, ZScore, frozen
from medseg_attack.models.sliding_window import (
    MirrorAverage,
    SlidingWindow,
    flips_of,
    importance_of,
    places_of,
    rehearsed,
    tiled,
)
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Task

TASK = Task("organs", ("background", "liver", "spleen"), exclusive=True)


class Net(nn.Module):
    """Two convolutions around an instance norm, whose statistics are those of the window; perhaps a dropout."""

    def __init__(self, dims: int = 3, drop: float = 0.0) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
        self.first, self.norm, self.last = conv(1, 4, 3, padding=1), norm(4, affine=True), conv(4, 3, 3, padding=1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.drop(torch.tanh(self.norm(self.first(x)))))
        return logits


def small_net(dims: int = 3, drop: float = 0.0, dtype: torch.dtype = torch.float64) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(dims, drop).to(dtype).eval()


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def organs(x: Tensor) -> Tensor:
    choice = torch.randint(3, (len(x), *x.shape[2:]), generator=torch.Generator().manual_seed(2))
    return torch.stack([choice == k for k in range(3)], 1)


class Full(nn.Module):
    """MONAI's inferer with its graph kept: another implementation, whose gradient autograd takes."""

    def __init__(self, net: nn.Module, size: tuple[int, ...], importance: str) -> None:
        super().__init__()
        self.net, self.size, self.importance = net, size, importance

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = sliding_window_inference(x, self.size, 1, self.net, overlap=0.5, mode=self.importance)
        return logits


def gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of the soft Dice of the whole scan, by the image and by the weights, through a z-score of the whole scan."""
    model = SegModel(net, TASK, normalise=ZScore(), dims=x.ndim - 2).eval()
    x = x.requires_grad_()
    loss = soft_dice(model(x), organs(x)).sum()
    by_x, *by_weights = torch.autograd.grad(loss, [x, *net.parameters()])
    return by_x, list(by_weights)


WINDOWS = [((9, 8, 11), (4, 5, 6)), ((5, 9), (5, 4)), ((6, 3, 7), (4, 6, 7))]  # overlapping, one axis whole, padded


@pytest.mark.parametrize(("grid", "size"), WINDOWS)
@pytest.mark.parametrize("importance", ["gaussian", "constant"])
def test_the_answer_is_that_of_monais_inferer(grid: tuple[int, ...], size: tuple[int, ...], importance: str) -> None:
    net, x = small_net(len(grid)), image(*grid)
    with torch.no_grad():
        torch.testing.assert_close(
            SlidingWindow(net, size, importance=importance).eval()(x),
            Full(net, size, importance)(x),
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize(
    ("grid", "size"), [((9, 8, 11), (4, 5, 6)), ((5, 9), (5, 4)), ((64,), (7,)), ((8, 16), (4, 1))]
)
def test_places_and_weights_of_windows_are_those_of_monai(
    grid: tuple[int, ...], size: tuple[int, ...], overlap: float
) -> None:
    apart = [n if n == m else max(int(n * (1 - overlap)), 1) for n, m in zip(size, grid, strict=True)]
    assert places_of(grid, size, overlap) == dense_patch_slices(grid, size, apart)
    assert torch.equal(importance_of(size), compute_importance_map(size, mode="gaussian", sigma_scale=0.125))


@pytest.mark.parametrize(("grid", "size"), WINDOWS)
@pytest.mark.parametrize("importance", ["gaussian", "constant"])
def test_two_passes_give_the_gradient_of_the_full_graph(
    grid: tuple[int, ...], size: tuple[int, ...], importance: str
) -> None:
    """In float64, with instance norm in the windows and a z-score around them."""
    net, x = small_net(len(grid)), image(*grid)
    by_x, by_weights = gradients(SlidingWindow(net, size, importance=importance), x)
    full_by_x, full_by_weights = gradients(Full(net, size, importance), x)
    assert (by_x - full_by_x).abs().max() < 1e-10
    assert by_x.abs().max() > 1e-5
    for result, known in zip(by_weights, full_by_weights, strict=True):
        assert (result - known).abs().max() < 1e-10


def test_in_float32_they_differ_by_rounding_alone() -> None:
    (grid, size), net = WINDOWS[0], small_net(dtype=torch.float32)
    x = image(*grid, dtype=torch.float32)
    result, known = (gradients(kind, x)[0] for kind in (SlidingWindow(net, size), Full(net, size, "gaussian")))
    assert (result - known).norm() < 1e-5 * known.norm()


def test_windows_alone_have_another_gradient() -> None:
    """What the exact gradient is for: of a Dice, that of each window by itself has other signs."""
    net, x = small_net(), image(8, 8, 8)
    exact = gradients(SlidingWindow(net, (4, 4, 4), overlap=0.5), x)[0]
    alone = gradients(SlidingWindow(net, (4, 4, 4), overlap=0.0), x)[0]
    assert (exact.sign() == alone.sign()).double().mean() < 0.95


def test_one_window_over_the_whole_is_the_network_itself() -> None:
    net, x = small_net(), image(6, 5, 7)
    result, known = gradients(SlidingWindow(net, (6, 5, 7)), x), gradients(net, x)
    torch.testing.assert_close(result[0], known[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("slid", [True, False])
def test_mirrored_copies_are_turned_back_and_averaged(slid: bool) -> None:
    net, x = small_net(), image(6, 7, 5)
    size = (4, 4, 5) if slid else (6, 7, 5)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, window: Tensor) -> Tensor:
            flips = [(), (2,), (4,), (2, 4)]
            return torch.stack([net(window.flip(f) if f else window).flip(f) for f in flips]).mean(0)

    model = SlidingWindow(net, size, mirror=(0, 2)) if slid else MirrorAverage(net, (0, 2), 3)
    result, known = gradients(model, x), gradients(Full(Turned(), size, "gaussian"), x)
    torch.testing.assert_close(result[0], known[0], rtol=0, atol=1e-12)
    for grad, known_grad in zip(result[1], known[1], strict=True):
        torch.testing.assert_close(grad, known_grad, rtol=0, atol=1e-12)


def test_a_net_that_draws_draws_the_same_twice() -> None:
    net, x = small_net(drop=0.5), image(6, 6, 6)[:1].requires_grad_()
    model = SlidingWindow(net, (4, 4, 4)).eval()
    net.drop.train()
    torch.manual_seed(5)
    (result,) = torch.autograd.grad(model(x).sum(), x)
    torch.manual_seed(5)
    (known,) = torch.autograd.grad(Full(net, (4, 4, 4), "gaussian")(x).sum(), x)
    assert known.abs().max() > 0
    torch.testing.assert_close(result, known, rtol=0, atol=1e-12)


def test_the_random_numbers_of_others_are_left_alone() -> None:
    net, x = small_net(), image(6, 6, 6).requires_grad_()
    logits = SlidingWindow(net, (4, 4, 4)).eval()(x)
    state = torch.get_rng_state()
    torch.rand(3)
    after = torch.get_rng_state()
    torch.set_rng_state(after)
    torch.autograd.grad(logits.sum(), x)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(state, after)


def test_the_graph_of_a_scan_holds_no_window() -> None:
    """What is kept between the passes does not grow with the number of windows."""
    kept: list[int] = []
    x = image(12, 12, 12).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        SlidingWindow(small_net().requires_grad_(False), (4, 4, 4)).eval()(x)
    assert sum(kept) == x.numel() + 64  # the scan and the importance of one window


def test_training_sees_patches() -> None:
    net = small_net()
    assert torch.equal(SlidingWindow(net, (4, 4, 4)).train()(image(4, 4, 4)), net(image(4, 4, 4)))


def test_any_attack_goes_through_windows() -> None:
    model = SegModel(SlidingWindow(small_net(dtype=torch.float32), (4, 4, 4)), TASK, dims=3)
    x = image(7, 6, 5, dtype=torch.float32)
    with frozen(model):
        target = model.decide(model(x))
        result = registry.build("pgd(linf(0.1), steps=3)", "attack")(model, x, target, [1, 2])
        alone = registry.build("pgd(linf(0.1), steps=3)", "attack")(model, x[1:], target[1:], [2])
    assert (result.harm > 0).all()
    torch.testing.assert_close(result.image[1:], alone.image)


@pytest.mark.parametrize(("overlap", "starts"), [(0.0, [0, 4, 6]), (0.25, [0, 3, 6]), (0.5, [0, 2, 4, 6])])
def test_windows_are_what_does_not_overlap_apart(overlap: float, starts: list[int]) -> None:
    assert [rows.start for rows, _ in places_of((10, 5), (4, 5), overlap)] == starts
    closest = [rows.start for rows, _ in places_of((10, 5), (4, 5), 0.75)]
    assert closest == list(range(7))


def test_places_cover_the_scan_and_stay_in_it() -> None:
    covered = torch.zeros(10, 7)
    for place in places_of((10, 7), (4, 3), 0.25):
        assert covered[place].shape == (4, 3)
        covered[place] += 1
    assert (covered > 0).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": (4,)}, r"expected window=\(rows, columns\)"),
        ({"size": (4, 0)}, r"expected window=\(rows, columns\)"),
        ({"overlap": 1.0}, "expected 0 <= overlap < 1"),
        ({"importance": "gauss"}, "expected the importance gaussian or constant, got 'gauss'"),
        ({"mirror": (2,)}, "expected mirror as different axes from 0 to 1"),
        ({"mirror": (0, 0)}, "expected mirror as different axes from 0 to 1"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        SlidingWindow(small_net(2), **({"size": (4, 4)} | options))  # type: ignore[arg-type]


def test_a_network_that_shrinks_its_answer_is_refused() -> None:
    with pytest.raises(InputError, match=r"on the grid \(4, 4\) of its window, got \(2, 2\)"):
        SlidingWindow(nn.AvgPool2d(2), (4, 4)).eval()(image(8, 8))


def test_subsets_of_axes() -> None:
    assert flips_of((0, 1, 2), 3) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert flips_of((), 3) == ((),)


def test_own_places_and_importance() -> None:
    """What another library's windows need: any places, any weights."""
    net, x = small_net(2), image(4, 6)
    places = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(2, 6))]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(4, 4)
    left, right = net(x[..., :4]), net(x[..., 2:])
    result = tiled(net, x, places, weights)
    torch.testing.assert_close(result[..., 0], left[..., 0])
    torch.testing.assert_close(result[..., 2], (3 * left[..., 2] + 1 * right[..., 0]) / 4)


def test_sums_in_half_precision_have_the_gradient_of_what_was_not_rounded() -> None:
    net, x = small_net(dtype=torch.float32), image(6, 7, 6, dtype=torch.float32).requires_grad_()
    places, upstream = places_of((6, 7, 6), (4, 4, 4), 0.5), torch.randn(2, 3, 6, 7, 6)
    plain, rounded = (
        tiled(net, x, places, torch.ones(4, 4, 4), ((), (0,)), kind) for kind in (torch.float32, torch.float16)
    )
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded.half().float(), rounded)
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(rounded, plain, rtol=4e-3, atol=4e-3)  # sums of up to 8 windows, each rounded
    known, result = (torch.autograd.grad(answer, x, upstream)[0] for answer in (plain, rounded))
    torch.testing.assert_close(result, known, rtol=0, atol=0)


def test_a_rehearsal_computes_one_window_and_counts_its_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks once whenever it is read, so that a window takes a second."""
    net, passes = small_net(2), []
    net.register_forward_hook(lambda *_: passes.append(1))
    model, x = SlidingWindow(net, (4, 4), importance="constant", mirror=(0,)).eval(), image(8, 6).requires_grad_()
    whole = model(x)
    assert len(passes) == 6 * 2  # 3 x 2 windows, each mirrored
    monkeypatch.setattr(sliding_window, "time", SimpleNamespace(perf_counter=partial(next, count())))
    passes.clear()
    with rehearsed() as rehearsal:
        answer = model(x)
        assert (len(passes), rehearsal.seconds) == (2, 5)
        (grad,) = torch.autograd.grad(answer.sum(), x)
        assert (len(passes), rehearsal.seconds) == (3, 5 + 11)
    window = model(x[..., :4, :4])
    torch.testing.assert_close(answer[..., :2, :2], window[..., :2, :2])  # each corner is in one window alone
    torch.testing.assert_close(answer[..., 6:, 4:], window[..., 2:, 2:])
    assert grad.shape == x.shape
    passes.clear()
    torch.testing.assert_close(model(x), whole, rtol=0, atol=0)
    assert len(passes) == 12


def test_windows_in_a_window_count_for_each_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding_window, "time", SimpleNamespace(perf_counter=partial(next, count())))
    model = SlidingWindow(SlidingWindow(small_net(2), (4, 4)), (8, 8)).eval()
    with rehearsed() as rehearsal:
        model(image(8, 12))
    # 9 windows in each of 2: the clock is read twice within the outer one, which takes 3, and 8 are left out there
    assert rehearsal.seconds == 8 + (3 + 8)
