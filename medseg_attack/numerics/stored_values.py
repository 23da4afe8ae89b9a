"""The stored values that an image may take, and what they look like in [0, 1]."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from medseg_attack.numerics.flows import slabs_of_flow, warped
from medseg_attack.numerics.samples import widen
from medseg_attack.numerics.slabs import Slab, slabs
from medseg_attack.types import Ball, Case, Flow, Image, PerChannel, Storage, per_channel

_NONE = (math.nan, math.nan)  # lies below and above no value
PLANES = 8  # of a window that are rounded at a time: float64 of all of it would take several times its memory
FLOAT32_SLACK = 2.0**-23  # in [0, 1]: what float32 loses of x - x0, so that a change meant to be n levels is not n - 1


@dataclass(frozen=True, eq=False)
class StoredValues:
    """Stored values of the images of one batch, each in its own file's type.

    It puts the `Storage` of several cases into tensors that go with a batch. `RoundedModel` uses it to keep attacks
    on the values of files. A volume is computed in slabs, since float64 of all of it would take four times its file.

    Attributes:
        raw: the scan's own values, (b, c, *s), in the type of the files; in float64 where files differ in type.
        slope, inter: a native intensity is `stored * slope + inter`; (b, c, 1, ...), as all that follow.
        low, high: native intensities that an image shows as 0 and 1.
        dtypes: the type of each case's file.
        least, most: the range that a file's bits hold; infinite where floats are stored.
        padding: least and largest stored value that stands for no measurement; NaN where no value does.
        has_padding: whether one does in some case.
    """

    raw: Tensor
    slope: Tensor
    inter: Tensor
    low: Tensor
    high: Tensor
    dtypes: tuple[torch.dtype, ...]
    least: Tensor
    most: Tensor
    padding: tuple[Tensor, Tensor]
    has_padding: bool

    @classmethod
    def of(cls, cases: Sequence[Case], device: torch.device | str) -> "StoredValues | None":
        """The stored values of `cases`; None if one of them has no storage."""
        storages = [case.storage for case in cases if case.storage is not None]
        if len(storages) < len(cases):
            return None
        channels, *grid = cases[0].image.shape
        own = [storage.stored for storage in storages]
        if len({values.dtype for values in own}) > 1:
            own = [values.to(torch.float64) for values in own]

        def per_case(values: list[PerChannel]) -> Tensor:
            numbers = [per_channel(value, channels) for value in values]
            return torch.tensor(numbers, dtype=torch.float64, device=device).view(-1, channels, *(1 for _ in grid))

        return cls(
            (own[0][None] if len(own) == 1 else torch.stack(own)).to(device),
            per_case([storage.slope for storage in storages]),
            per_case([storage.inter for storage in storages]),
            per_case([case.window.low for case in cases]),
            per_case([case.window.high for case in cases]),
            tuple(storage.stored.dtype for storage in storages),
            per_case([_limits(storage)[0] for storage in storages]),
            per_case([_limits(storage)[1] for storage in storages]),
            (
                per_case([(storage.padding or _NONE)[0] for storage in storages]),
                per_case([(storage.padding or _NONE)[1] for storage in storages]),
            ),
            any(storage.padding is not None for storage in storages),
        )

    @cached_property
    def stored(self) -> Tensor:
        """The scan's own values, (b, c, *s), float64, which holds every 32-bit integer."""
        return self.raw.to(torch.float64)

    @cached_property
    def outside(self) -> Tensor:
        """Whether a value is padding or outside of its intensity window, (b, c, *s)."""
        native = self.stored * self.slope + self.inter
        outside = (native < self.low) | (native > self.high)
        return outside | self._padded(self.stored) if self.has_padding else outside

    def _padded(self, stored: Tensor) -> Tensor:
        return (stored >= self.padding[0]) & (stored <= self.padding[1])

    def image(self, stored: Tensor, like: Image) -> Image:
        """Stored values as the reader of the data set shows them: the same operations, hence the same bits."""
        image = torch.empty(stored.shape, dtype=like.dtype, device=like.device)
        for slab in slabs(stored.shape, stored.ndim - 2):
            native = stored[slab].to(torch.float64) * self.slope + self.inter
            image[slab] = ((native - self.low) / (self.high - self.low)).clamp(0, 1).to(torch.float32)
        return image

    def in_float64(self, stored: Tensor) -> tuple[Image, Image]:
        """Two images for a ball to measure in float64, where one level is exactly one level.

        The first is of `stored`, the second of the scan's own values. Unlike `image`, the first keeps a change that
        lies outside of the window.
        """
        stored = stored.to(torch.float64)
        before = ((self.stored * self.slope + self.inter - self.low) / (self.high - self.low)).clamp(0, 1)
        return before + (stored - self.stored) * self.slope / (self.high - self.low), before

    def parts_in_float64(self, stored: Tensor) -> Iterator[tuple[Image, Image]]:
        """The images of `in_float64` in slabs, cut along their first spatial axis."""
        return (part.in_float64(stored[slab]) for slab, part in self._parts())

    def changes_outside(self, stored: Tensor) -> bool:
        """Whether `stored` differs from the scan's own where those are padding or outside of their window."""
        return any(
            bool((part.outside & (stored[slab].to(torch.float64) != part.stored)).any()) for slab, part in self._parts()
        )

    def warped(self, flow: Flow) -> "StoredValues":
        """The scan after its anatomy moved: values between stored ones are rounded to the nearest.

        This change alone is not rounded towards the untouched scan, since a moved scan is no neighbour of it.
        """
        raw = torch.empty_like(self.raw)
        for slab, start in slabs_of_flow(flow):
            raw[slab] = self._rounded(warped(self.raw, flow[slab].to(torch.float64), start)).to(raw.dtype)
        return replace(self, raw=raw)

    def _rounded(self, stored: Tensor) -> Tensor:
        return self._by_type(lambda dtype: stored.to(dtype).double() if dtype.is_floating_point else stored.round())

    def files(self, stored: Tensor) -> list[Tensor]:
        """Stored values of each case as its file holds them."""
        return [values.to(dtype) for values, dtype in zip(stored, self.dtypes, strict=True)]

    def _by_type(self, compute: Callable[[torch.dtype], Tensor]) -> Tensor:
        """The result of `compute`, which computes all cases for one type, taken for each case from its own type."""
        first, *others = dict.fromkeys(self.dtypes)
        result = compute(first)
        for dtype in others:
            has_dtype = torch.tensor([own == dtype for own in self.dtypes], device=result.device)
            result = torch.where(widen(has_dtype, result), compute(dtype), result)
        return result

    def at(self, index: Tensor) -> "StoredValues":
        """The stored values of some of the images."""
        tensors = ("raw", "slope", "inter", "low", "high", "least", "most")
        padding = (self.padding[0][index], self.padding[1][index])
        dtypes = tuple(self.dtypes[n] for n in index.tolist())
        return replace(self, padding=padding, dtypes=dtypes, **{name: getattr(self, name)[index] for name in tensors})

    def nearest(self, x: Image, x0: Image, ball: Ball) -> Tensor:
        """Stored values for `x`, in `ball` and in the window: rounded towards those of `x0`, so that no norm grows.

        They are float64, in which they can be subtracted; `raw_nearest` has them in the type of the files.
        """
        return self.raw_nearest(x, x0, ball).to(torch.float64)

    def raw_nearest(self, x: Image, x0: Image, ball: Ball) -> Tensor:
        """The values of `nearest`, in the type of `raw`."""
        raw = torch.empty_like(self.raw)
        for slab, part in self._parts():
            raw[slab] = part._moved(_change(x, x0, slab), FLOAT32_SLACK)
        near = self._near(self.parts_in_float64(raw), ball)
        if not near.all():
            for slab, part in self._parts():
                raw[slab] = part._moved(_change(x, x0, slab), near)
        return raw

    def rounding(self, x: Image, x0: Image, ball: Ball) -> Callable[[Image, Slab], Image]:
        """A function of a part of `x` and its index: that part of the image of `raw_nearest`, which is not kept."""
        near = self._near(
            (part.in_float64(part._moved(_change(x, x0, slab), FLOAT32_SLACK)) for slab, part in self._parts()), ball
        )

        def rounded(part: Image, index: Slab) -> Image:
            cut = (torch.split(values, PLANES, 2) for values in (part, x0[index], self.raw[index]))
            return torch.cat(list(map(shown, *cut)), 2)

        def shown(x: Image, x0: Image, raw: Tensor) -> Image:
            moved = replace(self, raw=raw)._moved((x - x0).to(torch.float64), near)
            return self.image(moved.to(raw.dtype), x)

        return rounded

    def _near(self, parts: Iterable[tuple[Image, Image]], ball: Ball) -> Tensor:
        """The slack of each sample: none where a change that was rounded with `FLOAT32_SLACK` left the ball."""
        grown = ball.size_of_parts(parts) > ball.limit * (1 + 1e-9)
        return widen(torch.where(grown, 0.0, FLOAT32_SLACK).to(self.slope), self.slope)

    def _parts(self) -> Iterator[tuple[Slab, "StoredValues"]]:
        """The stored values in slabs; one that holds all of them is this object, which keeps what it computed."""
        indices = list(slabs(self.raw.shape, self.raw.ndim - 2))
        for slab in indices:
            yield slab, self if len(indices) == 1 else replace(self, raw=self.raw[slab])

    def _moved(self, delta: Tensor, near: Tensor | float) -> Tensor:
        change = delta * (self.high - self.low) / self.slope
        moved = self._by_type(
            lambda dtype: self._to_float(change, dtype) if dtype.is_floating_point else self._to_integer(change, near)
        )
        return torch.where(self.outside | (delta == 0), self.stored, moved)

    def _to_float(self, change: Tensor, dtype: torch.dtype) -> Tensor:
        moved = (self.stored + change).to(dtype)
        back = torch.nextafter(moved, self.stored.to(dtype))
        further = (moved.to(torch.float64) - self.stored).abs() > change.abs()
        return torch.where(further, back, moved).to(torch.float64)

    def _to_integer(self, change: Tensor, near: Tensor | float) -> Tensor:
        slack = near / (self.slope / (self.high - self.low)).abs()
        moved = self.stored + torch.trunc(change + slack * change.sign())
        moved = moved.clamp(self.least, self.most)
        if not self.has_padding:
            return moved
        beside = torch.where(self.stored > moved, self.padding[1] + 1, self.padding[0] - 1)
        return torch.where(self._padded(moved), beside, moved)


def _limits(storage: Storage) -> tuple[float, float]:
    if storage.stored.dtype.is_floating_point:
        return -math.inf, math.inf
    integers = torch.iinfo(storage.stored.dtype)
    return storage.limits or (integers.min, integers.max)


def _change(x: Image, x0: Image, slab: Slab) -> Tensor:
    return (x[slab] - x0[slab]).to(torch.float64)
