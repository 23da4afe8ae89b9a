"""Another grid for a scan: once, when it is prepared."""

import dataclasses

import numpy as np
import torch

from medseg_attack.data.formats.scan import Array, Scan
from medseg_attack.errors import InputError
from medseg_attack.types import Task

EXACT = 2**24  # greatest whole number up to which float32 holds each one


def resampled(scan: Scan, task: Task, size: tuple[int, int]) -> Scan:
    """`scan` on `size` (rows, columns): intensities by anti-aliased bilinear interpolation, as float32.

    Labels are resampled as fractions by the same weights: a pixel gets the classes that cover at least half
    of it, in an exclusive task the one that covers most. There is no way back to the file's grid, so
    `lattice`, `affine`, `limits`, `padding` and `frames` go.

    Raises:
        InputError: the scan has whole numbers that float32 does not hold.
    """
    beyond = max(-int(scan.stored.min()), int(scan.stored.max())) > EXACT if scan.stored.dtype.kind in "iu" else False
    if beyond and (scan.stored.astype(np.float32) != scan.stored.astype(np.float64)).any():
        raise InputError(
            f"--size: expected stored values up to {EXACT:,}, which floats of 32 bits hold, got {scan.stored.min()} to "
            f"{scan.stored.max()} in {scan.case_ids[0]}; leave out --size, or store smaller numbers"
        )
    rows, columns = scan.labels.shape[1:]
    planes = scan.stored.reshape(-1, rows, columns)
    through, row_mm, column_mm = scan.spacing_mm
    return dataclasses.replace(
        scan,
        stored=np.stack([_on_grid(image[None], size)[0] for image in planes]).reshape(*scan.stored.shape[:-2], *size),
        labels=np.stack([_labels(labels, task, size) for labels in scan.labels]),
        spacing_mm=(through, row_mm * rows / size[0], column_mm * columns / size[1]),
        lattice=None,
        affine=None,
        limits=None,
        padding=None,
        frames=(),
    )


def _on_grid(channels: Array, size: tuple[int, int]) -> Array:
    image = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))[None]
    moved = torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
    result: Array = moved[0].numpy()
    return result


def _labels(labels: Array, task: Task, size: tuple[int, int]) -> Array:
    classes = np.arange(len(task.classes))[:, None, None]
    if task.exclusive:
        most: Array = _on_grid(labels == classes, size).argmax(axis=0).astype(labels.dtype)
        return most
    half = _on_grid((labels >> classes) & 1, size) >= 0.5
    result: Array = (half.astype(labels.dtype) << classes.astype(labels.dtype)).sum(axis=0, dtype=labels.dtype)
    return result
