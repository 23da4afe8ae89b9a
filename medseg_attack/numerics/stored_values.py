"""The stored values that an image may take, and what they look like in [0, 1]."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack.numerics.flows import warped
from medseg_attack.numerics.samples import widen
from medseg_attack.types import Ball, Case, Flow, Image, PerChannel, Storage, per_channel

_NONE = (math.nan, math.nan)  # lies below and above no value


FLOAT32_SLACK = 2.0**-23  # in [0, 1]: what float32 loses of x - x0, so that a change meant to be n levels is not n - 1


@dataclass(frozen=True, eq=False)
class StoredValues:
    """What the images of one batch are stored as, each in its own file's type.

    Attributes:
        stored: the scan's own values, (b, c, *s), float64, which holds every 32-bit integer.
        slope, inter, low, high: of each case and channel, (b, c, 1, ...).
        dtypes: of each case's file.
        least, most: what the file's bits hold, of each case; infinite where floats are stored.
        padding: least and largest stored value that stands for no measurement; NaN where there is none.
    """

    stored: Tensor
    slope: Tensor
    inter: Tensor
    low: Tensor
    high: Tensor
    dtypes: tuple[torch.dtype, ...]
    least: Tensor
    most: Tensor
    padding: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, cases: Sequence[Case], device: torch.device | str) -> "StoredValues | None":
        """The levels of cases that know how they are stored, None if one does not."""
        storages = [case.storage for case in cases if case.storage is not None]
        if len(storages) < len(cases):
            return None
        channels, *grid = cases[0].image.shape

        def per_case(values: list[PerChannel]) -> Tensor:
            numbers = [per_channel(value, channels) for value in values]
            return torch.tensor(numbers, dtype=torch.float64, device=device).view(-1, channels, *(1 for _ in grid))

        return cls(
            torch.stack([storage.stored.to(torch.float64) for storage in storages]).to(device),
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
        )

    @property
    def step(self) -> Tensor:
        """One stored level in [0, 1], (b, c, 1, ...); 0 where floats are stored."""
        width = (self.slope / (self.high - self.low)).abs()
        return self._by_type(lambda dtype: torch.zeros_like(width) if dtype.is_floating_point else width)

    @property
    def outside(self) -> Tensor:
        """Where the scan is padding or outside of its intensity window, (b, c, *s)."""
        native = self.stored * self.slope + self.inter
        return (native < self.low) | (native > self.high) | self._padded(self.stored)

    def _padded(self, stored: Tensor) -> Tensor:
        return (stored >= self.padding[0]) & (stored <= self.padding[1])

    def image(self, stored: Tensor, like: Image) -> Image:
        """Stored values as the reader of the data set shows them: the same operations, hence the same bits."""
        native = stored * self.slope + self.inter
        return ((native - self.low) / (self.high - self.low)).clamp(0, 1).to(torch.float32).to(like)

    def in_float64(self, stored: Tensor) -> tuple[Image, Image]:
        """What a ball measures, in float64, where a level is a level: the image stored as `stored`, and these levels'.

        Unlike `image`, what lies outside of the window is not cut off from the change.
        """
        before = ((self.stored * self.slope + self.inter - self.low) / (self.high - self.low)).clamp(0, 1)
        return before + (stored - self.stored) * self.slope / (self.high - self.low), before

    def warped(self, flow: Flow) -> "StoredValues":
        """The scan after its anatomy moved: values between stored ones are rounded to the nearest.

        This is the one change that is not rounded towards the untouched scan, of which a moved scan is no neighbour.
        """
        stored = warped(self.stored, flow.to(torch.float64))
        whole = self._by_type(lambda dtype: stored.to(dtype).double() if dtype.is_floating_point else stored.round())
        return replace(self, stored=whole)

    def files(self, stored: Tensor) -> list[Tensor]:
        """Stored values of each case as its file holds them."""
        return [values.to(dtype) for values, dtype in zip(stored, self.dtypes, strict=True)]

    def _by_type(self, made: Callable[[torch.dtype], Tensor]) -> Tensor:
        """Of each case what `made`, which answers for all of them, gives for its type."""
        first, *others = dict.fromkeys(self.dtypes)
        found = made(first)
        for dtype in others:
            mine = torch.tensor([own == dtype for own in self.dtypes], device=found.device)
            found = torch.where(widen(mine, found), made(dtype), found)
        return found

    def at(self, index: Tensor) -> "StoredValues":
        """Those of some of the images."""
        each = ("stored", "slope", "inter", "low", "high", "least", "most")
        padding = (self.padding[0][index], self.padding[1][index])
        dtypes = tuple(self.dtypes[n] for n in index.tolist())
        return replace(self, padding=padding, dtypes=dtypes, **{name: getattr(self, name)[index] for name in each})

    def nearest(self, x: Image, x0: Image, ball: Ball) -> Tensor:
        """Stored values for `x`: rounded towards those of `x0`, so that no norm grows, in `ball` and in the window."""
        delta = (x - x0).to(torch.float64)
        stored = self._moved(delta, FLOAT32_SLACK)
        grown = ball.size(*self.in_float64(stored)) > ball.limit * (1 + 1e-9)
        if grown.any():
            stored = torch.where(widen(grown, x0), self._moved(delta, 0.0), stored)
        return stored

    def _moved(self, delta: Tensor, near: float) -> Tensor:
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

    def _to_integer(self, change: Tensor, near: float) -> Tensor:
        slack = near / (self.slope / (self.high - self.low)).abs()
        moved = self.stored + torch.trunc(change + slack * change.sign())
        moved = moved.clamp(self.least, self.most)
        beside = torch.where(self.stored > moved, self.padding[1] + 1, self.padding[0] - 1)
        return torch.where(self._padded(moved), beside, moved)


def _limits(storage: Storage) -> tuple[float, float]:
    if storage.stored.dtype.is_floating_point:
        return -math.inf, math.inf
    whole = torch.iinfo(storage.stored.dtype)
    return storage.limits or (whole.min, whole.max)
