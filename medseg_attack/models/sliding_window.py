"""Sliding windows over a whole scan: windows are blended, and gradients pass at the memory of one window.

Blended logits are Z = sum_w place(g_w * f(x_w)) / sum_w place(g_w). A loss on Z does not split into windows (Dice is
over the whole organ), so the gradient of a window alone is not that of the pipeline. This module computes the
pipeline's gradient in two passes: the first computes Z without a graph, the second runs each window again and sends
back the part g_w / G of dL/dZ that lies on it. The result equals autograd on the full graph.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.numerics.slabs import is_one_slab, slabs
from medseg_attack.runtime import trim_memory, wait_for

Place: TypeAlias = tuple[slice, ...]  # a window's part of each spatial axis of a scan
Flip: TypeAlias = tuple[int, ...]  # spatial axes, from 0, that are mirrored
IMPORTANCE = ("gaussian", "constant")
S = TypeVar("S")
T = TypeVar("T")


def tiled(
    net: nn.Module,
    x: Float[Tensor, "b c *s"],
    places: Sequence[Place],
    importance: Float[Tensor, "*w"],
    flips: Sequence[Flip] = ((),),
    sums: torch.dtype | None = None,
) -> Float[Tensor, "b k *s"]:
    """The blended output of `net` on every window of `x`; differentiable by `x` and by the weights of `net`.

    Args:
        places: windows of the shape of `importance` that cover `x` together.
        importance: weight of each voxel of a window, above 0.
        flips: axes of each mirrored copy of a window; the mean over the copies, mirrored back, is taken.
        sums: type in which windows are summed, by default that of `x`; gradients ignore its rounding.

    Raises:
        InputError: the output of `net` is not on the grid of its window.
    """
    weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
    result: Tensor = _Tiled.apply(x, net, tuple(places), importance.to(x), tuple(flips), sums or x.dtype, *weights)
    return result


class SlidingWindow(nn.Module):
    """A network behind MONAI's sliding windows: the same places, padding and importance as its inferer.

    In training mode it is the network itself, since training cuts patches of a window's size.

    Attributes:
        size: sides of a window, in voxels. A scan that is smaller is padded with 0 on both sides.
        overlap: of neighbouring windows, as a fraction of their size in [0, 1).
        importance: weight of a window's voxels: "gaussian" (standard deviation an eighth of the size) or "constant".
        flips: axes of each mirrored copy of a window (test-time augmentation): all subsets of `mirror`, which are
            spatial axes from 0, so that n of them take the mean of 2^n outputs.
        from_end: spatial axes, from 0, that windows are laid out along from the end, as of a network that gets them
            reversed.
    """

    def __init__(
        self,
        net: nn.Module,
        size: tuple[int, ...],
        *,
        overlap: float = 0.5,
        importance: str = "gaussian",
        mirror: Flip = (),
        from_end: Flip = (),
    ) -> None:
        super().__init__()
        if len(size) not in (2, 3) or any(type(n) is not int or n < 1 for n in size):
            raise InputError(
                f"expected window=(rows, columns) or (slices, rows, columns), got {size}; "
                "write whole numbers from 1, e.g. window=(64, 64, 64)"
            )
        if not 0 <= overlap < 1:
            raise InputError(f"expected 0 <= overlap < 1, got {overlap}; write overlap=0.5")
        if importance not in IMPORTANCE:
            raise InputError(f"expected the importance {' or '.join(IMPORTANCE)}, got {importance!r}; leave it out")
        self.net, self.size, self.overlap, self.importance = net, size, overlap, importance
        self.flips, self.from_end = flips_of(mirror, len(size)), from_end

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        if self.training:
            logits: Tensor = self.net(x)
            return logits
        padded, margins, places = self.laid_out(x)
        return cropped(tiled(self.net, padded, places, self._importance(), self.flips), margins, x.shape[2:])

    def laid_out(self, x: Float[Tensor, "b c *s"]) -> tuple[Float[Tensor, "b c *t"], list[int], list[Place]]:
        """The scan padded, the voxels added before each axis, and the windows of the padded scan."""
        axes = [axis + 2 for axis in self.from_end]
        padded, margins = padded_to(x.flip(axes) if axes else x, self.size)
        grid = padded.shape[2:]
        places = places_of(grid, self.size, self.overlap)
        if not axes:
            return padded, margins, places
        margins = [
            grid[axis] - x.shape[axis + 2] - margin if axis in self.from_end else margin
            for axis, margin in enumerate(margins)
        ]
        places = [
            tuple(
                slice(n - part.stop, n - part.start) if axis in self.from_end else part
                for axis, (part, n) in enumerate(zip(place, grid, strict=True))
            )
            for place in places
        ]
        return padded.flip(axes), margins, places

    def _importance(self) -> Float[Tensor, "*w"]:
        return importance_of(self.size) if self.importance == "gaussian" else torch.ones(self.size)


class MirrorAverage(nn.Module):
    """The mean of a network's outputs over mirrored copies of the whole image."""

    def __init__(self, net: nn.Module, axes: Flip, dims: int) -> None:
        super().__init__()
        self.net, self.flips = net, flips_of(axes, dims)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        if self.training:
            logits: Tensor = self.net(x)
            return logits
        grid = tuple(x.shape[2:])
        return tiled(self.net, x, [tuple(slice(0, n) for n in grid)], x.new_ones(grid), self.flips)


def flips_of(axes: Flip, dims: int) -> tuple[Flip, ...]:
    """All subsets of the axes, the smaller ones first.

    >>> flips_of((0, 2), 3)
    ((), (0,), (2,), (0, 2))

    Raises:
        InputError: an axis is named twice, or the image does not have it.
    """
    if len(set(axes)) != len(axes) or any(type(axis) is not int or not 0 <= axis < dims for axis in axes):
        raise InputError(f"expected mirror as different axes from 0 to {dims - 1}, got {axes}; e.g. mirror=(0, 1)")
    return tuple(flip for n in range(len(axes) + 1) for flip in combinations(axes, n))


def mirrored_copies(flips: Sequence[Flip]) -> str:
    """The number of copies of a window in words, to be put after others; nothing of one that is not mirrored."""
    return f", {len(flips)} mirrored copies each" if len(flips) > 1 else ""


def padded_to(x: Float[Tensor, "b c *s"], size: Sequence[int]) -> tuple[Float[Tensor, "b c *t"], list[int]]:
    """The scan padded with 0 on both sides to at least the size of a window, and the voxels added before each axis."""
    missing = [max(n - m, 0) for n, m in zip(size, x.shape[2:], strict=True)]
    if any(missing):
        x = functional.pad(x, [n for m in reversed(missing) for n in (m // 2, m - m // 2)])
    return x, [m // 2 for m in missing]


def cropped(x: Float[Tensor, "b k *t"], margins: Sequence[int], grid: Sequence[int]) -> Float[Tensor, "b k *s"]:
    """The part of `x` on `grid`, which begins behind a margin of each axis: the inverse of `padded_to`."""
    for axis, (margin, n) in enumerate(zip(margins, grid, strict=True), start=2):
        if n < x.shape[axis]:  # the gradient of a part is a copy, even where the part is all
            x = x.narrow(axis, margin, n)
    return x


def places_of(grid: Sequence[int], size: Sequence[int], overlap: float) -> list[Place]:
    """The windows of MONAI's inferer: `size * (1 - overlap)` apart, the last ones moved back into the scan.

    MONAI itself is not asked, since it takes seconds and 100 MB to load.

    >>> places_of((10,), (4,), 0.5)
    [(slice(0, 4, None),), (slice(2, 6, None),), (slice(4, 8, None),), (slice(6, 10, None),)]
    """
    starts = []
    for n, m in zip(grid, size, strict=True):
        apart = max(int(m * (1 - overlap)), 1)
        starts.append([min(start, n - m) for start in range(0, n - m + apart, apart)])
    return [
        tuple(slice(start, start + m) for start, m in zip(corner, size, strict=True)) for corner in product(*starts)
    ]


def importance_of(size: Sequence[int]) -> Float[Tensor, "*w"]:
    """MONAI's Gaussian weights of a window's voxels: standard deviation an eighth of a side, 0.001 at least."""
    weights = torch.ones(())
    for m in size:
        offset = torch.arange(-(m - 1) / 2, (m - 1) / 2 + 1, dtype=torch.float32)
        weights = weights[..., None] * torch.exp(offset**2 / (-2 * (m * 0.125) ** 2))
    return weights.clamp(min=max(weights.min().item(), 1e-3))


@dataclass
class Rehearsal:
    """Passes in which the network computes one window alone, whose results stand for those of all windows.

    Memory is that of the whole pass. What it computes has no meaning.

    Attributes:
        seconds: that the windows which were left out would have taken.
    """

    seconds: float = 0.0

    def first(self, items: Sequence[S], compute: Callable[[S], T], device: torch.device) -> Iterator[T]:
        """The result of the first window, once for each."""
        start, before = time.perf_counter(), self.seconds
        result = compute(items[0])
        wait_for(device)
        within = self.seconds - before  # of windows in a window
        self.seconds += (len(items) - 1) * (time.perf_counter() - start + within)
        yield from (result for _ in items)


_rehearsal: ContextVar[Rehearsal | None] = ContextVar("_rehearsal", default=None)


@contextmanager
def rehearsed() -> Iterator[Rehearsal]:
    """A scope in which passes through windows take the time of one window, to learn what whole ones would take."""
    rehearsal = Rehearsal()
    token = _rehearsal.set(rehearsal)
    try:
        yield rehearsal
    finally:
        _rehearsal.reset(token)


def is_rehearsed() -> bool:
    """Whether passes are made to learn what whole ones would take: their results have no meaning."""
    return _rehearsal.get() is not None


Show: TypeAlias = Callable[[Tensor, Place], Tensor]  # of a part of an image and its index in samples (b, c, *s)
_shown: ContextVar[tuple[Tensor, Show] | None] = ContextVar("_shown", default=None)


@contextmanager
def shown_as(image: Float[Tensor, "b c *s"], show: Show) -> Iterator[None]:
    """A scope in which a network behind windows gets what `show` makes of each window of this very image.

    Gradients pass as if it were the window itself. So what is computed of a volume is never in memory as a whole.
    """
    token = _shown.set((image, show))
    try:
        yield
    finally:
        _shown.reset(token)


class _Tiled(torch.autograd.Function):
    """The two passes of the module's header; a network with random parts draws the same numbers in both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        net: nn.Module,
        places: tuple[Place, ...],
        importance: Tensor,
        flips: tuple[Flip, ...],
        sums: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, importance, *weights)
        image, show = _shown.get() or (x, _as_is)
        show = show if x.is_set_to(image) else _as_is  # windows of a window are its own
        ctx.parts = net, places, flips, show
        ctx.rng = torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        kind = x.device.type  # the scope around the forward pass; backward may run outside of it
        ctx.amp = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        ctx.rehearsal = _rehearsal.get()  # backward may run in another thread
        _make_room(x)

        def answer(place: Place) -> Tensor:
            return _mean_output(net, show(x[_of(place)], _of(place)), flips)

        blended: Tensor | None = None
        answers = ctx.rehearsal.first(places, answer, x.device) if ctx.rehearsal else map(answer, places)
        for place, logits in zip(places, answers, strict=True):
            window = _of(place)
            if blended is None:
                blended = x.new_zeros((len(x), logits.shape[1], *x.shape[2:]), dtype=sums)
            blended[window] += importance * logits
        assert blended is not None
        totals = _Totals(places, importance.to(sums))
        for slab in slabs(x.shape, x.ndim - 2):
            region = _bounded(slab[1:], x.shape[2:])
            blended[slab].div_(totals.within(region))
        return blended.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, importance, *weights = ctx.saved_tensors
        net, places, flips, show = ctx.parts
        _make_room(x)
        x_grad = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        weight_grads = [torch.zeros_like(weight) for weight in weights]
        totals = _Totals(places, importance)

        def slopes(copy: tuple[Place, Flip]) -> tuple[Tensor | None, ...]:
            (place, flip), window = copy, _of(copy[0])
            weighted = importance * (upstream[window] / totals.within(place) / len(flips))
            x_window = show(x[window], window).detach().requires_grad_(x_grad is not None)
            logits = _output(net, x_window, flip)
            inputs = [*([x_window] if x_grad is not None else []), *weights]
            return torch.autograd.grad(logits, inputs, weighted.to(logits), allow_unused=True)

        copies = list(product(places, flips))
        with _repeat(x, ctx.rng, ctx.amp):
            each = ctx.rehearsal.first(copies, slopes, x.device) if ctx.rehearsal else map(slopes, copies)
            for (place, _), grads in zip(copies, each, strict=True):
                sums = [*([x_grad[_of(place)]] if x_grad is not None else []), *weight_grads]
                for sum_, grad in zip(sums, grads, strict=True):
                    sum_ += 0 if grad is None else grad
        return x_grad, None, None, None, None, None, *weight_grads


def _of(place: Place) -> Place:
    """The index of a window in samples (b, c, *s)."""
    return slice(None), slice(None), *place


def _as_is(window: Tensor, index: Place) -> Tensor:
    return window


def _make_room(x: Tensor) -> None:
    """Gives back what the allocator keeps of earlier work in slabs, before arrays of a volume's size are made."""
    if x.device.type == "cpu" and not is_one_slab(x):
        trim_memory()


def _output(net: nn.Module, window: Tensor, flip: Flip) -> Tensor:
    axes = [axis + 2 for axis in flip]
    logits: Tensor = net(window.flip(axes) if axes else window.clone())  # a network may change its input in place
    if logits.shape[2:] != window.shape[2:]:
        raise InputError(
            f"expected the network's answer on the grid {tuple(window.shape[2:])} of its window, got "
            f"{tuple(logits.shape[2:])}; take a window that its strides divide, or let it resize its answer"
        )
    return logits.flip(axes) if axes else logits


def _mean_output(net: nn.Module, window: Tensor, flips: Sequence[Flip]) -> Tensor:
    total = _output(net, window, flips[0]).to(window.dtype)
    for flip in flips[1:]:
        total = total + _output(net, window, flip)
    return total / len(flips)


class _Totals:
    """The sum of the weights of all windows, of a part of a scan at a time: of all of it, it would be a scan more.

    Args:
        importance: weights of a window, in the type of the sums.
    """

    def __init__(self, places: Sequence[Place], importance: Tensor) -> None:
        self.places, self.importance = places, importance
        self._layer, self._near = slice(0, 0), list[Place]()

    def within(self, region: Place) -> Tensor:
        """The sums in a region, each in the order of the windows."""
        if region[0] != self._layer:  # windows come layer by layer
            self._layer, self._near = region[0], [place for place in self.places if _overlap(place[0], region[0])]
        total = self.importance.new_zeros([part.stop - part.start for part in region])
        for place in self._near:
            if all(map(_overlap, place, region)):
                total[_common(place, region, region)] += self.importance[_common(place, region, place)]
        return total


def _bounded(parts: Sequence[Any], grid: Sequence[int]) -> Place:
    """Slices whose starts and ends are numbers."""
    return tuple(slice(*part.indices(n)[:2]) for part, n in zip(parts, grid, strict=True))


def _overlap(first: slice, second: slice) -> bool:
    return bool(first.start < second.stop and second.start < first.stop)


def _common(first: Place, second: Place, origin: Place) -> Place:
    """The region that two have in common, counted from where `origin` begins."""
    return tuple(
        slice(max(a.start, b.start) - o.start, min(a.stop, b.stop) - o.start)
        for a, b, o in zip(first, second, origin, strict=True)
    )


@contextmanager
def _repeat(x: Tensor, rng: tuple[Tensor, Tensor | None], amp: torch.dtype | None) -> Iterator[None]:
    """A scope with the random numbers and the precision of the first pass; afterwards both are as before."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.set_rng_state(rng[0])
        if rng[1] is not None:
            torch.cuda.set_rng_state(rng[1], x.device)
        with torch.autocast(x.device.type, dtype=amp, enabled=amp is not None), torch.enable_grad():
            yield
