"""nnU-Net v2's prediction, from the stored scan to classes on its grid, with a gradient all the way.

The box around the voxels that are not 0 is computed anew for every image and has no gradient. nnU-Net keeps logits,
from their sums over windows on, in half precision. They are rounded to it, since that decides voxels; gradients ignore
the rounding, and a model in double precision rounds nothing.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseg_attack.errors import InputError
from medseg_attack.models.importers.output import PickOutput
from medseg_attack.models.nnunet.resampling import resampled, resampled_shape
from medseg_attack.models.nnunet.results_folder import Plan, Scheme, distinguished_range, read_folder, spacings
from medseg_attack.models.segmodel import CERTAIN, SegModel
from medseg_attack.models.sliding_window import Place, cropped, flips_of, mirrored_copies, padded_to, tiled
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import Code, register
from medseg_attack.types import Case, Image, Setting, Storage, Task, per_channel

EPS = 1e-8  # nnU-Net's least standard deviation and range
MOST_VOXELS = 2**32  # of a resampled scan: more than any scanner's, and a sign of a spacing in another unit
ZERO_TOLERANCE = 1e-6  # fraction of the window by which float32 may move a native 0


def _code(options: Mapping[str, Any]) -> Code | None:
    """The checkpoints that may be unpickled."""
    if not options.get("trust", False):
        return None
    name = str(options.get("checkpoint", "checkpoint_final.pth"))
    files = [fold / name for fold in sorted(Path(str(options.get("folder", ""))).glob("fold_*"))]
    return Code("", tuple(file for file in files if file.is_file()))


@register("nnunet", kind="model", trained=True, code=_code, bounds={"step": "(0, 1]"})
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

    Prepare the data with a window that cuts off no values which nnU-Net uses: --window range, or for CT LOW,HIGH.

    Args:
        folder: the results folder.
        fold: 0, 1, ... or 'all'; by default the only one there is.
        checkpoint: name of the file with the weights, in the folder of the fold.
        step: distance of neighbouring windows, as a fraction of their size in (0, 1].
        mirror: whether mirrored copies are averaged, along the axes that training mirrored.
        trust: whether the checkpoint may be unpickled, which runs whatever it holds.

    Raises:
        InputError: a part of the folder is missing or broken, or has other channels or classes than the data.
    """
    if not folder:
        raise InputError(
            "expected nnunet('RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION'), got nnunet(); name a folder"
        )
    if not 0 < step <= 1:
        raise InputError(f"expected 0 < step <= 1, got {step}; write step=0.5")
    plan, net = read_folder(Path(folder), task, fold, checkpoint, trust)
    return SegModel(Predictor(net, plan, step, mirror), task, head="sigmoid" if plan.regions else "softmax", dims=3)


class Predictor(nn.Module):
    """The map from scans in [0, 1] of their windows to logits on their grids, scan by scan.

    Attributes:
        cases: the cases of the images, for their window, spacing and order of axes; `bind` sets them.
    """

    def __init__(self, net: nn.Module, plan: Plan, step: float, mirror: bool, cases: Sequence[Case] = ()) -> None:
        super().__init__()
        self.plan, self.cases = plan, tuple(cases)
        self.windows = Windows(net, plan, step, mirror)

    @property
    def grid(self) -> str:
        """The grid that the network gets, in words."""
        mm, sides = (" x ".join(f"{n:g}" for n in axes) for axes in (self.plan.spacing, self.plan.patch))
        return f"resampled to {mm} mm, in windows of {sides}{mirrored_copies(self.windows.flips)}"

    def bind(self, setting: Setting) -> "Predictor":
        """The predictor of the setting's cases, with the same network.

        Raises:
            InputError: the window of a case hides values that nnU-Net uses.
        """
        for case in setting.cases:
            if case not in self.cases:  # their windows are checked already
                _check_window(case, self.plan)
        bound = Predictor(self.windows.net, self.plan, self.windows.step, self.windows.mirror, setting.cases)
        for module, original in zip(bound.modules(), self.modules(), strict=True):
            module.training = original.training
        return bound

    def forward(self, image: Image) -> Float[Tensor, "b k *s"]:
        """Logits of the images of the bound cases, in their order.

        Raises:
            InputError: the number of images is not that of the cases.
        """
        if len(image) != len(self.cases):
            raise InputError(
                f"expected the {len(self.cases)} scans that nnU-Net is bound to, got {len(image)}; it must know their "
                "windows and spacings, and cannot stand where scans are not known, as for a teacher"
            )
        return torch.stack([self._predict(x, case) for x, case in zip(image, self.cases, strict=True)])

    def _predict(self, x: Float[Tensor, "c *s"], case: Case) -> Float[Tensor, "k *s"]:
        order, flips = _order(case, self.plan)
        spacing = tuple(case.spacing_mm[axis] for axis in order)
        target = spacings(self.plan, spacing)
        native, tolerance = _native(x.flip(flips).permute(0, *(axis + 1 for axis in order)), case)
        foreground = _foreground(native, tolerance)
        box = _box(foreground)
        channels = zip(native[(slice(None), *box)], self.plan.schemes, strict=True)
        net_input = torch.stack([normalised(channel, scheme, foreground[box]) for channel, scheme in channels])
        grid = tuple(net_input.shape[1:])
        shape = resampled_shape(grid, spacing, target)
        if not 0 < math.prod(shape) < MOST_VOXELS:
            before, after = (" x ".join(f"{mm:g}" for mm in mms) for mms in (spacing, target))
            raise InputError(
                f"expected plans.json with a spacing that scans of {' x '.join(map(str, grid))} voxels of {before} mm "
                f"can be resampled to, got {after} mm, which makes {' x '.join(map(str, shape))} voxels; use "
                "the results folder of such scans"
            )
        net_input = resampled(net_input, shape, spacing, target, self.plan.image)
        logits = resampled(self.windows(net_input[None])[0], grid, target, spacing, self.plan.logits)
        logits = straight_through(logits.detach().to(_precision(logits)).to(logits), logits)
        inverse = [order.index(axis) + 1 for axis in range(3)]
        if regions := self.plan.regions:
            logits = painted(logits, regions.values, regions.order)
        logits = _uncropped(logits, box, tuple(foreground.shape), background=regions is None)
        return logits.permute(0, *inverse).flip(flips)


class Windows(nn.Module):
    """nnU-Net's sliding windows: the map from preprocessed scans to logits on their grids.

    Attributes:
        step: distance of neighbouring windows, as a fraction of their size.
        patch: sides of a window along the three axes, in voxels; 1 slice for a 2-D network.
        flips: axes of each mirrored copy of a window.
    """

    def __init__(self, net: nn.Module, plan: Plan, step: float, mirror: bool) -> None:
        super().__init__()
        flat = 3 - len(plan.patch)
        self.net, self.step, self.mirror, self.flat = net, step, mirror, bool(flat)
        self.patch = (1,) * flat + plan.patch
        self.flips = flips_of(tuple(axis + flat for axis in plan.mirror) if mirror else (), 3)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        padded, margins = padded_to(x, self.patch)
        places = windows(padded.shape[2:], self.patch, self.step)
        net: nn.Module = PickOutput(self.net, "", 2 if self.flat else 3, "copy the results folder again")
        net = SliceNetwork(net) if self.flat else net
        logits = tiled(net, padded, places, importance(self.patch), self.flips, _precision(x))
        return cropped(logits, margins, x.shape[2:])


class SliceNetwork(nn.Module):
    """A 2-D network on windows of one slice."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "b c 1 h w"]) -> Float[Tensor, "b k 1 h w"]:
        logits: Tensor = self.net(x[:, :, 0])
        return logits[:, :, None]


def normalised(x: Float[Tensor, "*s"], scheme: Scheme, foreground: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """A channel with nnU-Net's normalisation.

    Args:
        foreground: voxels that are not 0 in the scan. A masked scheme computes its statistics on them and changes
            them alone.
    """
    match scheme.name:
        case "ZScoreNormalization":
            values = x[foreground] if scheme.masked else x
            centred = x - values.mean()
            z = centred / values.std(correction=0).clamp(min=EPS)
            return torch.where(foreground, z, x) if scheme.masked else z
        case "CTNormalization":
            return (x.clamp(scheme.low, scheme.high) - scheme.mean) / max(scheme.std, EPS)
        case "RescaleTo01Normalization":
            above = x - x.min()
            return above / above.max().clamp(min=EPS)
        case "RGBTo01Normalization":
            return x / 255
    return x


def painted(
    logits: Float[Tensor, "k *s"], regions: Sequence[Sequence[int]], order: Sequence[int]
) -> Float[Tensor, "k *s"]:
    """Log-odds that a voxel of nnU-Net's one label map is in each region.

    nnU-Net writes `order[0]` where the first region is predicted, then `order[1]` over it, and so on. A voxel is in a
    region if the last value that was written to it is one of the region's.

    Args:
        regions: the values of each.
        order: the value that is written for each.
    """
    result = []
    for values in regions:
        uncovered: Tensor | None = None  # how surely no later region writes another value
        reached: Tensor | None = None
        for logit, value in zip(reversed(logits), reversed(order), strict=True):
            if value in values:
                own = logit if uncovered is None else torch.minimum(logit, uncovered)
                reached = own if reached is None else torch.maximum(reached, own)
            else:
                uncovered = -logit if uncovered is None else torch.minimum(uncovered, -logit)
        result.append(torch.full_like(logits[0], float(np.log(CERTAIN))) if reached is None else reached)
    return torch.stack(result)


def windows(grid: Sequence[int], patch: Sequence[int], step: float) -> list[Place]:
    """The windows of nnU-Net: evenly from end to end, at most `step` of their size apart; in 2-D each slice once."""
    starts = []
    for n, m in zip(grid, patch, strict=True):
        count = int(np.ceil((n - m) / max(m * step, 1))) + 1
        apart = (n - m) / max(count - 1, 1)
        starts.append([int(np.round(apart * i)) for i in range(count)])
    return [tuple(slice(a, a + m) for a, m in zip(start, patch, strict=True)) for start in product(*starts)]


def importance(patch: Sequence[int]) -> Float[Tensor, "*w"]:
    """nnU-Net's weights of a window's voxels: a Gaussian up to 10, as half precision holds it."""
    from scipy.ndimage import gaussian_filter

    sides = [n for n in patch if n > 1] or [1]  # a slice has two axes
    peak = np.zeros(sides)
    peak[tuple(n // 2 for n in sides)] = 1
    gaussian = gaussian_filter(peak, [n / 8 for n in sides], mode="constant")
    half = torch.from_numpy(gaussian / (gaussian.max() / 10)).half()
    return half.clamp(min=half[half > 0].min().item()).float().reshape(tuple(patch))


def _precision(x: Tensor) -> torch.dtype:
    """The type in which nnU-Net keeps logits."""
    return torch.float64 if x.dtype == torch.float64 else torch.float16


def _native(x: Float[Tensor, "c *s"], case: Case) -> tuple[Float[Tensor, "c *s"], list[float]]:
    """Intensities in the scan's unit, and for each channel the magnitude up to which one counts as 0."""
    n, storage = len(x), case.storage or Storage(torch.zeros(0))
    low, width = (per_channel(ends, n) for ends in (case.window.low, case.window.width))
    shape = (-1, *(1 for _ in x.shape[1:]))
    native = x * x.new_tensor(width).view(shape) + x.new_tensor(low).view(shape)
    if storage.stored.dtype.is_floating_point:
        return native, [ZERO_TOLERANCE * channel_width for channel_width in width]
    return native, [abs(slope) / 2 for slope in per_channel(storage.slope, n)]


def _foreground(native: Float[Tensor, "c *s"], tolerance: Sequence[float]) -> Bool[Tensor, "*s"]:
    """The voxels that are not 0 in some channel, with holes filled."""
    from scipy.ndimage import binary_fill_holes

    bounds = native.new_tensor(tolerance).view(-1, 1, 1, 1)
    nonzero = (native.detach().abs() > bounds).any(0)
    return torch.from_numpy(binary_fill_holes(nonzero.cpu().numpy())).to(native.device)


def _box(mask: Bool[Tensor, "d h w"]) -> Place:
    """The smallest box around a mask; the whole grid for an empty one."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    projections = [mask.any(1).any(1), mask.any(0).any(1), mask.any(0).any(0)]
    indices = [projection.nonzero()[:, 0].tolist() for projection in projections]
    return tuple(slice(axis[0], axis[-1] + 1) for axis in indices)


def _uncropped(
    logits: Float[Tensor, "k *s"], box: Place, grid: Sequence[int], *, background: bool
) -> Float[Tensor, "k *t"]:
    """Logits on the whole grid, with certain background outside of the box.

    Args:
        background: whether it is the first class; else no class is there.
    """
    if tuple(logits.shape[1:]) == tuple(grid):
        return logits
    result = logits.new_zeros(len(logits), *grid)
    if background:
        result[0] = -float(np.log(CERTAIN))
    else:
        result += float(np.log(CERTAIN))
    result[(slice(None), *box)] = logits
    return result


def _order(case: Case, plan: Plan) -> tuple[tuple[int, ...], list[int]]:
    """The image's spatial axes in the network's order, and the axes of (c, *s) that are reversed before."""
    order, flips = (case.storage.order, case.storage.flips) if case.storage else ((0, 1, 2), ())
    return tuple(order[axis] for axis in plan.transpose), [axis + 1 for axis in flips]


def _check_window(case: Case, plan: Plan) -> None:
    """Refuses a scan with values beyond its window that nnU-Net uses, since the model would not get them."""
    if case.storage is None:
        return
    n = len(case.image)
    ends = [
        per_channel(value, n) for value in (case.window.low, case.window.high, case.storage.slope, case.storage.inter)
    ]
    stored = case.storage.stored.numpy()  # torch has no minimum of 16 and 32 bits without a sign
    for scheme, values, low, high, slope, inter in zip(plan.schemes, stored, *ends, strict=True):
        native = sorted((values.min().item() * slope + inter, values.max().item() * slope + inter))
        least, most = distinguished_range(scheme, *native)
        tolerance = ZERO_TOLERANCE * (high - low)
        if least < low - tolerance or most > high + tolerance:
            raise InputError(
                f"expected a window that holds {least:g} to {most:g}, which nnU-Net sees of {case.id}, got {low:g} to "
                f"{high:g}; prepare the data with --window range, or for CT or padded scans with --window=LOW,HIGH"
            )
