"""nnU-Net v2 as it predicts, from the stored scan to classes on its grid, with a gradient all the way.

What is decided by comparing (the box around what is not 0) is decided anew for every image and has no gradient. What
nnU-Net keeps in half precision (logits, from their sums over windows on) is rounded to it here, since that decides
voxels; gradients pass as if it were not, and a model in double precision rounds nothing.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.models.nnunet.resampling import resampled, shape_at
from medseg_attack.models.nnunet.results_folder import Plan, Scheme, needed, read_folder, spacings
from medseg_attack.models.segmodel import CERTAIN, SegModel
from medseg_attack.models.sliding_window import Place, flips_of, tiled
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, Storage, Task, per_channel

EPS = 1e-8  # nnU-Net's, of a standard deviation and of a range


BESIDE = 1e-6  # of the window: how far float32 takes a native 0 from 0


@register("nnunet", kind="model", trained=True)
def nnunet(
    task: Task,
    folder: str = "",
    *,
    fold: Any = None,
    checkpoint: str = "checkpoint_final.pth",
    step: float = 0.5,
    mirror: bool = True,
    trust: bool = False,
) -> SegModel:
    """nnU-Net v2's results folder, DATASET/TRAINER__PLANS__CONFIGURATION, with all that its predictor does.

    Data are to be prepared with a window that cuts nothing off which it looks at: --window range, or for CT LOW,HIGH.

    Args:
        fold: 0, 1, ... or 'all'; by default the only one there is.
        step: from one window to the next, as a fraction of their size.
        mirror: whether mirrored copies are averaged, where training allows for it.
        trust: whether the checkpoint may be unpickled, which runs whatever it holds.

    Raises:
        InputError: a part of the folder is missing or broken, or of other channels or classes than the data.
    """
    if not folder:
        raise InputError("expected nnunet('RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION'), got nnunet(); name it")
    if not 0 < step <= 1:
        raise InputError(f"expected 0 < step <= 1, got {step}; write step=0.5")
    plan, net = read_folder(Path(folder), task, fold, checkpoint, trust)
    return SegModel(Predictor(net, plan, step, mirror), task, head="softmax", dims=3)


class Predictor(nn.Module):
    """Scans in [0, 1] of their windows -> logits on their grids; each scan by itself.

    Attributes:
        cases: what the images are made of: window, spacing, order of axes. `on` tells them.
    """

    def __init__(self, net: nn.Module, plan: Plan, step: float, mirror: bool, cases: Sequence[Case] = ()) -> None:
        super().__init__()
        self.plan, self.cases = plan, tuple(cases)
        self.windows = Windows(net, plan, step, mirror)

    @property
    def grid(self) -> str:
        """What becomes of a scan's grid, in words."""
        mm, sides = (" x ".join(f"{n:g}" for n in of) for of in (self.plan.spacing, self.plan.patch))
        return f"resampled to {mm} mm, in windows of {sides}, {len(self.windows.flips)} mirrored copies each"

    def on(self, cases: Sequence[Case]) -> "Predictor":
        """The predictor of these cases, with the same network.

        Raises:
            InputError: their window hides what nnU-Net would see.
        """
        for case in cases:
            _check_window(case, self.plan)
        return self._of(cases)

    def at(self, index: Tensor) -> "Predictor":
        """The predictor of some of its cases."""
        return self._of([self.cases[i] for i in index.tolist()])

    def _of(self, cases: Sequence[Case]) -> "Predictor":
        told = Predictor(self.windows.net, self.plan, self.windows.step, self.windows.mirror, cases)
        for mine, theirs in zip(told.modules(), self.modules(), strict=True):
            mine.training = theirs.training
        return told

    def forward(self, image: Image) -> Float[Tensor, "b k *s"]:
        """Raises InputError if it was not told of as many cases."""
        if len(image) != len(self.cases):
            raise InputError(
                f"expected the {len(self.cases)} scans that nnU-Net was told of, got {len(image)}; it must know their "
                "windows and spacings, and cannot stand where scans are not known, as for a surrogate"
            )
        return torch.stack([self._one(x, case) for x, case in zip(image, self.cases, strict=True)])

    def _one(self, x: Float[Tensor, "c *s"], case: Case) -> Float[Tensor, "k *s"]:
        order, flips = _order(case, self.plan)
        spacing = tuple(case.spacing_mm[axis] for axis in order)
        target = spacings(self.plan, spacing)
        native, tolerance = _native(x.flip(flips).permute(0, *(axis + 1 for axis in order)), case)
        there = _filled(native, tolerance)
        box = _box(there)
        seen = torch.stack(
            [
                normalised(channel, scheme, there[box])
                for channel, scheme in zip(native[(slice(None), *box)], self.plan.schemes, strict=True)
            ]
        )
        before = tuple(seen.shape[1:])
        seen = resampled(seen, shape_at(before, spacing, target), spacing, target, self.plan.image)
        logits = _kept(resampled(self.windows(seen[None])[0], before, target, spacing, self.plan.logits))
        back = [order.index(axis) + 1 for axis in range(3)]
        return _uncropped(logits, box, tuple(there.shape)).permute(0, *back).flip(flips)


class Windows(nn.Module):
    """nnU-Net's sliding windows: preprocessed scans -> logits on their grids.

    Attributes:
        patch: of the three axes; a 2-D network's has one slice.
    """

    def __init__(self, net: nn.Module, plan: Plan, step: float, mirror: bool) -> None:
        super().__init__()
        flat = 3 - len(plan.patch)
        self.net, self.step, self.mirror, self.flat = net, step, mirror, bool(flat)
        self.patch = (1,) * flat + plan.patch
        self.flips = flips_of(tuple(axis + flat for axis in plan.mirror) if mirror else (), 3)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        missing = [max(n - m, 0) for n, m in zip(self.patch, x.shape[2:], strict=True)]
        padded = functional.pad(x, [n for m in reversed(missing) for n in (m // 2, m - m // 2)]) if any(missing) else x
        places = windows(tuple(padded.shape[2:]), self.patch, self.step)
        net = OfSlices(self.net) if self.flat else self.net
        logits = tiled(net, padded, places, importance(self.patch), self.flips, _precision(x))
        for axis, (m, n) in enumerate(zip(missing, x.shape[2:], strict=True), start=2):
            logits = logits.narrow(axis, m // 2, n)
        return logits


class OfSlices(nn.Module):
    """A 2-D network on windows of one slice."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b k 1 h w"]:
        logits: Tensor = self.net(x[:, :, 0])
        return logits[:, :, None]


def normalised(x: Float[Tensor, "*s"], scheme: Scheme, there: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """A channel as the network is to see it.

    Args:
        there: what is not 0 in the scan, of which a masked scheme takes the statistics and which alone it changes.
    """
    match scheme.name:
        case "ZScoreNormalization":
            seen = x[there] if scheme.masked else x
            centred = x - seen.mean()
            z = centred / seen.std(correction=0).clamp(min=EPS)
            return torch.where(there, z, x) if scheme.masked else z
        case "CTNormalization":
            return (x.clamp(scheme.low, scheme.high) - scheme.mean) / max(scheme.std, EPS)
        case "RescaleTo01Normalization":
            above = x - x.min()
            return above / above.max().clamp(min=EPS)
        case "RGBTo01Normalization":
            return x / 255
    return x


def windows(grid: Sequence[int], patch: Sequence[int], step: float) -> list[Place]:
    """Where nnU-Net puts windows: evenly from end to end, at most `step` of their size apart."""
    starts = []
    for n, m in zip(grid, patch, strict=True):
        count = int(np.ceil((n - m) / (m * step))) + 1
        apart = (n - m) / max(count - 1, 1)
        starts.append([int(np.round(apart * i)) for i in range(count)])
    return [tuple(slice(a, a + m) for a, m in zip(start, patch, strict=True)) for start in product(*starts)]


def importance(patch: Sequence[int]) -> Float[Tensor, "*w"]:
    """nnU-Net's weights of a window's voxels: a Gaussian up to 10, as half precision holds it."""
    from scipy.ndimage import gaussian_filter

    within = [n for n in patch if n > 1] or [1]  # of a slice: its own two axes
    peak = np.zeros(within)
    peak[tuple(n // 2 for n in within)] = 1
    found = gaussian_filter(peak, [n / 8 for n in within], mode="constant")
    half = torch.from_numpy(found / (found.max() / 10)).half()
    return half.clamp(min=half[half > 0].min().item()).float().reshape(tuple(patch))


def _precision(x: Tensor) -> torch.dtype:
    """In which nnU-Net would keep logits."""
    return torch.float64 if x.dtype == torch.float64 else torch.float16


def _kept(logits: Float[Tensor, "k *s"]) -> Float[Tensor, "k *s"]:
    """Rounded as nnU-Net keeps them, with the gradient of what was not."""
    return logits.detach().to(_precision(logits)).to(logits) + (logits - logits.detach())


def _native(x: Float[Tensor, "c *s"], case: Case) -> tuple[Float[Tensor, "c *s"], list[float]]:
    """Intensities in the scan's unit, and for each channel how near to 0 they are 0."""
    n, storage = len(x), case.storage or Storage(torch.zeros(0))
    low, width = (per_channel(ends, n) for ends in (case.window.low, case.window.width))
    shape = (-1, *(1 for _ in x.shape[1:]))
    native = x * x.new_tensor(width).view(shape) + x.new_tensor(low).view(shape)
    if storage.stored.dtype.is_floating_point:
        return native, [BESIDE * mm for mm in width]
    return native, [abs(slope) / 2 for slope in per_channel(storage.slope, n)]


def _filled(native: Float[Tensor, "c *s"], tolerance: Sequence[float]) -> Bool[Tensor, "*s"]:
    """What is not 0 in any channel, without holes."""
    from scipy.ndimage import binary_fill_holes

    bounds = native.new_tensor(tolerance).view(-1, 1, 1, 1)
    there = (native.detach().abs() > bounds).any(0)
    return torch.from_numpy(binary_fill_holes(there.cpu().numpy())).to(native.device)


def _box(there: Bool[Tensor, "*s"]) -> Place:
    """The smallest box around it; everything where there is nothing."""
    if not there.any():
        return tuple(slice(0, n) for n in there.shape)
    ends = [there.any(1).any(1), there.any(0).any(1), there.any(0).any(0)]
    where = [found.nonzero()[:, 0].tolist() for found in ends]
    return tuple(slice(found[0], found[-1] + 1) for found in where)


def _uncropped(logits: Float[Tensor, "k *s"], box: Place, grid: Sequence[int]) -> Float[Tensor, "k *t"]:
    """Outside of the box there is background, for certain."""
    if tuple(logits.shape[1:]) == tuple(grid):
        return logits
    whole = logits.new_zeros(len(logits), *grid)
    whole[0] = -float(np.log(CERTAIN))
    whole[(slice(None), *box)] = logits
    return whole


def _order(case: Case, plan: Plan) -> tuple[tuple[int, ...], list[int]]:
    """Axes of the image in the order of the network's, and the axes of an image (c, *s) to be reversed before."""
    order, flips = (case.storage.order, case.storage.flips) if case.storage else ((0, 1, 2), ())
    return tuple(order[axis] for axis in plan.transpose), [axis + 1 for axis in flips]


def _check_window(case: Case, plan: Plan) -> None:
    """Refuses a scan with values beyond its window: nnU-Net sees them, and so must the model."""
    if case.storage is None:
        return
    n = len(case.image)
    ends = [
        per_channel(value, n) for value in (case.window.low, case.window.high, case.storage.slope, case.storage.inter)
    ]
    for scheme, values, low, high, slope, inter in zip(plan.schemes, case.storage.stored, *ends, strict=True):
        both = sorted((values.min().item() * slope + inter, values.max().item() * slope + inter))
        least, most = needed(scheme, *both)
        beyond = BESIDE * (high - low)
        if least < low - beyond or most > high + beyond:
            raise InputError(
                f"expected a window that holds {least:g} to {most:g}, which nnU-Net sees of {case.id}, got {low:g} to "
                f"{high:g}; prepare the data with --window range, or for CT or padded scans with --window=LOW,HIGH"
            )
