"""Small scans in every format, written by the tests themselves."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medseg_attack.data.formats import rle

ORGANS = ("large_bowel", "small_bowel", "stomach")
ROWS, COLUMNS = 12, 16


def write_uw(root: Path, *, patients: int = 4, slices: int = 2) -> Path:
    """A competition tree of 12 x 16 slices; large bowel and stomach overlap."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    with (root / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "class", "segmentation"))
        for patient in range(1, patients + 1):
            folder = root / "train" / f"case{patient}" / f"case{patient}_day0" / "scans"
            folder.mkdir(parents=True)
            for number in range(1, slices + 1):
                pixels = rng.integers(0, 4000, (ROWS, COLUMNS)).astype(np.uint16)
                Image.fromarray(pixels).save(folder / f"slice_{number:04d}_{COLUMNS}_{ROWS}_1.50_1.63.png")
                masks = np.zeros((3, ROWS, COLUMNS), dtype=bool)
                masks[0, 2:6, 3:9] = masks[2, 4:8, 5:12] = True
                for organ, mask in zip(ORGANS, masks, strict=True):
                    table.writerow((f"case{patient}_day0_slice_{number:04d}", organ, rle.encode(mask)))
    return root


def first_png(root: Path) -> Path:
    return min(root.rglob("*.png"))


def edit_csv(root: Path, change: Callable[[list[list[str]]], None]) -> Path:
    """Changes the rows of train.csv, the header's row among them."""
    path = root / "train.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_pair(
    image_path: Path,
    mask_path: Path,
    *,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    mask_affine: np.ndarray | None = None,
    slope: float = 1.0,
    inter: float = 0.0,
) -> None:
    """A NIfTI volume of 8 x 10 x 5 at 1 x 1 x 4 mm with labels 0 to 3, stored as int16 and uint8."""
    if image is None:
        image = np.random.default_rng(1).integers(0, 1000, (8, 10, 5)).astype(np.int16)
    if mask is None:
        mask = np.arange(image.size).reshape(image.shape) % 4
    affine = np.diag((1.0, 1.0, 4.0, 1.0)) if affine is None else affine
    for path, array, place in (
        (image_path, image, affine),
        (mask_path, mask.astype(np.uint8), affine if mask_affine is None else mask_affine),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = nibabel.Nifti1Image(array, place)
        if path == image_path:
            file.header.set_slope_inter(slope, inter)
        nibabel.save(file, path)


def write_acdc(root: Path, *, patients: int = 4) -> Path:
    for number in range(1, patients + 1):
        write_pair(*acdc_paths(root, number))
    return root


def acdc_paths(root: Path, number: int = 1) -> tuple[Path, Path]:
    stem = root / "training" / f"patient{number:03d}" / f"patient{number:03d}_frame01"
    return stem.with_name(f"{stem.name}.nii.gz"), stem.with_name(f"{stem.name}_gt.nii.gz")


def write_decathlon(root: Path, *, cases: int = 4, suffix: str = "") -> Path:
    for number in range(cases):
        write_pair(root / "imagesTr" / f"liver_{number}{suffix}.nii.gz", root / "labelsTr" / f"liver_{number}.nii.gz")
    return root


NAMES = ("T1", "FLAIR")
SCALES = ((0.5, -20.0), (2.0, 100.0))  # slope and offset of each channel


def channels(number: int = 0) -> np.ndarray:
    """Two channels of 8 x 10 x 5 on different scales, int16, channels last."""
    rng = np.random.default_rng(number)
    return np.stack([rng.integers(0, 400, (8, 10, 5)), rng.integers(1000, 1200, (8, 10, 5))], axis=-1).astype(np.int16)


def write_channels(root: Path, *, together: bool, cases: int = 4) -> Path:
    """Two channels per case: along a fourth axis as the Decathlon writes them, or in files of their own as nnU-Net."""
    for number in range(cases):
        image, mask = channels(number), root / "labelsTr" / f"brain_{number}.nii.gz"
        truth = np.arange(400).reshape(8, 10, 5) % 3
        if together:
            write_pair(root / "imagesTr" / f"brain_{number}.nii.gz", mask, image=image, mask=truth)
        else:
            for channel, (slope, inter) in enumerate(SCALES):
                path = root / "imagesTr" / f"brain_{number}_{channel:04d}.nii.gz"
                write_pair(path, mask, image=image[..., channel], mask=truth)
                set_scale(path, slope, inter)
    key = "modality" if together else "channel_names"
    (root / "dataset.json").write_text(json.dumps({key: {str(i): name for i, name in enumerate(NAMES)}}))
    return root


def set_scale(path: Path, slope: float, inter: float) -> None:
    """Changes the scale in a gzipped NIfTI file's header and nothing else: nibabel would rescale what it writes."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]))
    header["scl_slope"], header["scl_inter"] = slope, inter
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def palette_png(path: Path, numbers: np.ndarray) -> Path:
    """Class numbers as the indices of a coloured palette, of which 0 is no black and luminance grows with no index."""
    image = Image.fromarray(numbers.astype(np.uint8), mode="L").convert("P")
    image.putpalette([255, 255, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0])
    image.putdata(numbers.ravel().tolist())
    image.save(path)
    return path
