"""A made-up abdomen: what the phantom shows, in slices from the diaphragm (z = 0) to the pelvis (z = 1).

Lengths are in half fields of view: x to the right of the image and y downwards (to the back) run from -1 to
1. Intensities are relative to fat. Organ contrast, noise and texture are those of soft tissue: a few
hundredths.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float64]
ORGANS = ("large_bowel", "small_bowel", "stomach")


@dataclass(frozen=True)
class Body:
    """The anatomy of a patient, which is the same on every day."""

    axes: tuple[float, float]
    fat: float  # thickness of the rim
    tissue: dict[str, float]  # intensities
    frame: tuple[float, float]  # half axes of the large bowel's course
    stomach: tuple[float, float]  # centre
    liver: tuple[float, float]
    noise: float  # sigma of each of the two channels of the complex signal


@dataclass(frozen=True)
class Day:
    """The pose of the organs on one day."""

    shift: tuple[float, float]
    bowel_radius: float
    haustra: tuple[float, float]  # folds around the course, and their phase
    loops: Field  # of small bowel: x, y, z, half axes x, y, z, angle
    filling: tuple[float, float, float]  # half axes of the stomach in x, y, z
    bend: float
    bias: Field  # coefficients of the coil's sensitivity: x, y, x^2, xy, y^2


def body(rng: np.random.Generator) -> Body:
    """A patient."""
    base = rng.uniform(0.40, 0.46)
    tissue = {
        "fat": rng.uniform(0.9, 1.0),
        "wall": base - rng.uniform(0.06, 0.10),
        "cavity": base,
        "spine": base + rng.uniform(0.10, 0.16),
        "liver": base + rng.uniform(0.05, 0.08),
        "kidney": base + rng.uniform(0.05, 0.08),
        "large_bowel": base - rng.uniform(0.08, 0.12),
        "small_bowel": base + rng.uniform(0.13, 0.17),
        "stomach": base + rng.uniform(0.19, 0.24),
    }
    axes = (rng.uniform(0.84, 0.94), rng.uniform(0.68, 0.78))
    return Body(
        axes=axes,
        fat=rng.uniform(0.05, 0.10),
        tissue=tissue,
        frame=(axes[0] * rng.uniform(0.60, 0.68), axes[1] * rng.uniform(0.52, 0.60)),
        stomach=(rng.uniform(0.20, 0.30), rng.uniform(-0.24, -0.14)),
        liver=(rng.uniform(-0.42, -0.34), rng.uniform(-0.12, -0.02)),
        noise=rng.uniform(0.016, 0.030),
    )


def day(rng: np.random.Generator, patient: Body) -> Day:
    """A day of a patient."""
    n = int(rng.integers(7, 10))
    around = rng.uniform(0, 2 * np.pi, n)
    far = np.sqrt(rng.uniform(0, 1, n)) * 0.55
    loops = np.stack(
        (
            patient.frame[0] * far * np.cos(around),
            patient.frame[1] * far * np.sin(around) + 0.08,
            rng.uniform(0.42, 0.85, n),
            rng.uniform(0.13, 0.19, n),
            rng.uniform(0.10, 0.13, n),
            rng.uniform(0.20, 0.32, n),
            rng.uniform(0, np.pi, n),
        ),
        axis=1,
    )
    return Day(
        shift=(rng.uniform(-0.05, 0.05), rng.uniform(-0.04, 0.04)),
        bowel_radius=rng.uniform(0.085, 0.115),
        haustra=(float(rng.integers(9, 14)), rng.uniform(0, 2 * np.pi)),
        loops=loops,
        filling=(rng.uniform(0.28, 0.36), rng.uniform(0.17, 0.22), rng.uniform(0.26, 0.32)),
        bend=rng.uniform(0.4, 1.2),
        bias=rng.uniform(-0.10, 0.10, 5),
    )


def draw(
    patient: Body, today: Day, rng: np.random.Generator, n_slices: int, side: int
) -> tuple[Field, NDArray[np.bool_]]:
    """Magnitude images (slices, side, side) and masks (organs, slices, side, side)."""
    grid = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(grid - today.shift[1], grid - today.shift[0], indexing="ij")
    heights = (np.arange(n_slices) + rng.uniform(0.2, 0.8)) / n_slices
    texture = gaussian_filter(rng.standard_normal((n_slices, side, side)), (0.7, 2.0, 2.0))
    texture *= 0.025 / texture.std()
    images, masks = [], []
    for z, grain in zip(heights, texture, strict=True):
        depths = {
            "large_bowel": _large_bowel(patient, today, x, y, float(z)),
            "small_bowel": _small_bowel(today, x, y, float(z)),
            "stomach": _stomach(patient, today, x, y, float(z)),
        }
        images.append(_tissue(patient, x, y, float(z), depths, 2 / side, grain))
        masks.append(np.stack([depths[organ] > 0 for organ in ORGANS]))
    signal = np.stack(images) * np.exp(_bias(today.bias, x, y))
    real, imaginary = patient.noise * rng.standard_normal((2, *signal.shape))
    return np.hypot(signal + real, imaginary), np.stack(masks, axis=1)


def _ellipse(x: Field, y: Field, a: float, b: float, angle: float = 0.0) -> Field:
    """About how deep a point lies inside; negative outside."""
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    depth: Field = (1 - np.hypot(across / a, along / b)) * min(a, b)
    return depth


def _at_height(half_axis: float, offset: float) -> float:
    """How much of its width an ellipsoid has at `offset` from its middle."""
    return float(np.sqrt(max(0.0, 1 - (offset / half_axis) ** 2)))


def _large_bowel(patient: Body, today: Day, x: Field, y: Field, z: float) -> Field:
    """A tube along a rounded frame: its front only at the height of the transverse colon, its back never."""
    u, v = x / patient.frame[0], y / patient.frame[1]
    course = (np.abs(u) ** 3 + np.abs(v) ** 3) ** (1 / 3)
    angle = np.arctan2(v, u)
    folds, phase = today.haustra
    sides = np.clip(1.6 * np.abs(np.cos(angle)) - 0.4, 0, 1) * _at_height(0.42, z - 0.52)
    front = np.clip(-1.8 * np.sin(angle), 0, 1) * _at_height(0.20, z - 0.38)
    radius = today.bowel_radius * np.maximum(sides, front) * (1 + 0.18 * np.cos(folds * angle + phase))
    depth: Field = np.where(radius > 0.035, radius - np.abs(course - 1) * np.mean(patient.frame), -1.0)
    return depth


def _small_bowel(today: Day, x: Field, y: Field, z: float) -> Field:
    depth = np.full_like(x, -1.0)
    for cx, cy, cz, a, b, c, angle in today.loops:
        width = _at_height(c, z - cz)
        if width > 0.45:
            depth = np.maximum(depth, _ellipse(x - cx, y - cy, a * width, b * width, angle + z))
    return depth


def _stomach(patient: Body, today: Day, x: Field, y: Field, z: float) -> Field:
    a, b, c = today.filling
    width = _at_height(c, z - 0.30)
    if width <= 0.4:
        return np.full_like(x, -1.0)
    u, v = x - patient.stomach[0], y - patient.stomach[1]
    return _ellipse(u, v - today.bend * u**2, a * width, b * width, -0.4)


def _tissue(patient: Body, x: Field, y: Field, z: float, depths: dict[str, Field], pixel: float, grain: Field) -> Field:
    """Signal without noise: every border is a mixture over about a pixel (partial volume)."""

    def cover(depth: Field) -> Field:
        return np.clip(0.5 + depth / (1.5 * pixel), 0, 1)

    value = patient.tissue
    outline = _ellipse(x, y, *patient.axes)
    image = 0.02 + (value["fat"] - 0.02) * cover(outline)
    for name, depth in (
        ("wall", outline - patient.fat),
        ("cavity", outline - patient.fat - 0.06),
        ("liver", _ellipse(x - patient.liver[0], y - patient.liver[1], 0.30, 0.34) if z < 0.40 else None),
        ("kidney", _ellipse(x - 0.36, y - 0.30, 0.09, 0.12) if 0.25 < z < 0.7 else None),
        ("kidney", _ellipse(x + 0.36, y - 0.30, 0.09, 0.12) if 0.3 < z < 0.75 else None),
        ("spine", _ellipse(x, y - 0.46, 0.13, 0.12)),
    ):
        if depth is not None:
            image += (value[name] - image) * cover(depth)
    image += grain * cover(outline - patient.fat)
    return _with_organs(image, {name: cover(depth) for name, depth in depths.items()}, value, x, y)


def _with_organs(image: Field, covers: dict[str, Field], value: dict[str, float], x: Field, y: Field) -> Field:
    folds: dict[str, Any] = {
        "large_bowel": 0.0,
        "small_bowel": 0.02 * np.sin(40 * (x + 0.6 * y)),
        "stomach": 0.015 * np.sin(18 * y),
    }
    total = sum(covers.values(), np.zeros_like(image))
    mixed = sum((covers[name] * (value[name] + folds[name]) for name in covers), np.zeros_like(image))
    most = np.maximum.reduce(list(covers.values()))
    organ = mixed / np.maximum(total, 1e-9)
    # the texture of the tissue behind shows through, so that no organ is flat
    result: Field = image + most * (organ - image) * 0.9
    return result


def _bias(coefficients: Field, x: Field, y: Field) -> Field:
    """The logarithm of a coil's smooth sensitivity."""
    terms = np.stack((x, y, x**2, x * y, y**2))
    return np.tensordot(coefficients, terms, axes=1)
