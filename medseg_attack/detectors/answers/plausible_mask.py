"""The shape of the predicted mask, beside those of the training patients' true masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg_attack.detectors.base import Detector, Training
from medseg_attack.detectors.gaussian import LEAST, fit_gaussian, squared_distance
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry import register
from medseg_attack.types import Batch, Case, Image, LogOdds, Mask, Model, PerSample

NUMBERS = 9  # of each class and case, below
AREA, ROWS, COLUMNS, PARTS, LARGEST, HOLES, EDGE, CONTACT, NEXT = range(NUMBERS)
FLOOR = 0.05  # least scale of a feature: one that all training patients share is no proof


@register("plausible_mask", kind="detector", cost="1 forward")
@dataclass(frozen=True)
class PlausibleMask(Detector):
    """The distance of the mask's shape from the true masks of training patients, whole scans together.

    Of each class: volume, share of slices that have it, number of parts, share outside the largest one, holes, place of
    the centre, length of the edge, contact with other classes, and disagreement with the next slice. Robust z-scores
    and one Gaussian. It notices harm, whatever its cause, but no wrong mask that is plausible, such as that of another
    patient. Attacks climb it by volume and place, of which soft masks have a gradient.
    """

    reason: ClassVar[str] = "a mask whose shape is unlike those of the training patients"

    def looks_at_scans(self) -> bool:
        return True

    def observe(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, Float[Tensor, "b d"]]:
        log_odds = model(image)
        classes = model.task.scored_channels
        hard = shapes(model.decide(log_odds)[:, classes], cases)
        p = log_odds[:, classes].sigmoid().to(torch.float64)
        soft = torch.stack([_volumes(p, cases), *_moments(p, cases)], 2)
        smooth = torch.cat([soft, hard[:, :, PARTS:]], 2)
        return log_odds, straight_through(hard, smooth).flatten(1)

    def training_statistics(self, model: Model, batch: Batch) -> Float[Tensor, "b d"]:
        return shapes(batch.target[:, model.task.scored_channels], batch.cases).flatten(1)

    def learn(self, training: Training) -> dict[str, Tensor]:
        features, _ = _per_scan(training.clean, training.cases)
        middle = features.median(0).values
        spread = (1.4826 * (features - middle).abs().median(0).values).clamp(min=FLOOR)
        known = fit_gaussian((features - middle) / spread)
        # what all training patients share has no variance: it counts by its robust scale, and not by that of the fit
        known["factor"].diagonal()[known["scale"] <= LEAST] = 1.0
        return {"middle": middle, "spread": spread, **known}

    def score(self, statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> PerSample:
        features, scans = _per_scan(statistics, cases)
        z = (features - self.known("middle", features)) / self.known("spread", features)
        names = ("mean", "scale", "factor")
        # a feature that hardly varied among training patients counts no more than its robust scale says
        mean, scale, factor = (self.known(name, z) for name in names)
        return squared_distance(z, mean, scale.clamp(min=1.0), factor)[scans]


def shapes(masks: Mask, cases: Sequence[Case]) -> Float[Tensor, "b k n"]:
    """Numbers of each mask's shape, which add up over the slices of a scan; no gradient.

    Volume in ml (of a slice cm^2, where its distance to the next is not known), its rows and columns times that, number
    of parts, volume of the largest, of holes and of the edge, of the edge that touches other classes, and of what the
    next slice of the scan does not have alike.
    """
    voxels = np.array([_voxel(case) for case in cases]) if len(cases) == len(masks) else np.ones(len(masks))
    order = {(case.volume, case.stack.index): n for n, case in enumerate(cases) if case.stack is not None}
    array = masks.detach().cpu().numpy()
    numbers = np.zeros((*masks.shape[:2], NUMBERS))
    for n, mask in enumerate(array):
        case = cases[n] if len(cases) == len(masks) else None
        follows = None if case is None or case.stack is None else order.get((case.volume, case.stack.index + 1))
        for k, own in enumerate(mask):
            others = np.delete(mask, k, 0).any(0)
            beside = None if follows is None else array[follows, k]
            numbers[n, k, PARTS:] = _shape(own, others, beside)
    numbers[:, :, LARGEST:] *= voxels[:, None, None]
    hard = masks.to(torch.float64)
    moments = torch.stack([_volumes(hard, cases), *_moments(hard, cases)], 2)
    return torch.cat([moments, torch.from_numpy(numbers[:, :, PARTS:]).to(masks.device)], 2)


def _shape(mask: NDArray[np.bool_], others: NDArray[np.bool_], beside: NDArray[np.bool_] | None) -> list[float]:
    """The numbers from `PARTS` on, in pixels."""
    if not mask.any():
        return [0.0, 0.0, 0.0, 0.0, 0.0, float(beside.sum()) if beside is not None else 0.0]
    parts, n_parts = ndimage.label(mask)
    largest = np.bincount(parts.ravel())[1:].max()
    edge = mask & ~ndimage.binary_erosion(mask)
    contact = edge & ndimage.binary_dilation(others) if others.any() else np.zeros_like(edge)
    holes = ndimage.binary_fill_holes(mask) & ~mask
    disagreement = 0 if beside is None else (mask ^ beside).sum()
    return [float(each) for each in (n_parts, largest, holes.sum(), edge.sum(), contact.sum(), disagreement)]


def _voxel(case: Case) -> float:
    """The volume of a pixel in ml; of a slice of no scan its area in cm^2."""
    thickness = case.stack.spacing_mm if case.stack is not None else 1.0 if len(case.spacing_mm) == 3 else 10.0
    return prod(case.spacing_mm) * thickness / 1000


def _volumes(p: Tensor, cases: Sequence[Case]) -> Tensor:
    known = len(cases) == len(p)
    voxels = p.new_tensor([_voxel(case) for case in cases] if known else [1.0] * len(p))
    return p.flatten(2).sum(2) * voxels[:, None]


def _moments(p: Tensor, cases: Sequence[Case]) -> list[Tensor]:
    """The sums over rows and columns, each from 0 to 1 across the image, times the volume of a pixel."""
    rows, columns = (torch.linspace(0, 1, n, dtype=p.dtype, device=p.device) for n in p.shape[-2:])
    return [_volumes(p * rows[:, None], cases), _volumes(p * columns, cases)]


def _per_scan(statistics: Float[Tensor, "b d"], cases: Sequence[Case]) -> tuple[Float[Tensor, "n m"], Tensor]:
    """Features of each scan, and the number of each case's scan."""
    device = statistics.device
    numbers: dict[str, int] = {}
    known = len(cases) == len(statistics)
    scans = torch.tensor(
        [numbers.setdefault(case.volume, len(numbers)) for case in cases] if known else range(len(statistics)),
        device=device,
    )
    each = statistics.view(len(statistics), -1, NUMBERS)
    n = int(scans.max()) + 1
    total = each.new_zeros(n, *each.shape[1:]).index_add(0, scans, each)
    present = each.new_zeros(n, each.shape[1]).index_add(0, scans, (each[:, :, LARGEST] > 0).to(each))
    slices = each.new_zeros(n).index_add(0, scans, torch.ones_like(each[:, 0, 0]))
    volume = total[:, :, AREA].clamp(min=1e-9)
    some, shown = (present > 0).to(each), present.clamp(min=1)
    features = torch.stack(
        [
            total[:, :, AREA].log1p(),
            present / slices[:, None],
            total[:, :, PARTS] / shown,
            some * (1 - total[:, :, LARGEST] / volume).clamp(0, 1),
            some * (total[:, :, HOLES] / volume).clamp(max=1),
            some * total[:, :, ROWS] / volume,
            some * total[:, :, COLUMNS] / volume,
            some * (total[:, :, EDGE] / volume).clamp(max=1),
            some * (total[:, :, CONTACT] / total[:, :, EDGE].clamp(min=1e-9)).clamp(max=1),
            some * (total[:, :, NEXT] / volume).clamp(max=2),
        ],
        2,
    )
    return features.flatten(1), scans
