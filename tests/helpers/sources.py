"""One small source of every registered format, for tests that hold of all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.dicoms import write_hospital
from helpers.scans import write_acdc, write_decathlon, write_uw
from medseg_attack.data.datasets.source import Source, open_source


def write_pictures(root: Path, *, patients: int = 4) -> Path:
    """Grey pictures of 16 x 12 and masks of 0 and 255."""
    for number in range(patients):
        pixels = np.random.default_rng(number).integers(20, 235, (16, 12)).astype(np.uint8)
        mask = np.zeros((16, 12), np.uint8)
        mask[4:10, 3:9] = 255
        for name, array in (("images", pixels), ("masks", mask)):
            path = root / name / f"p{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root


def write_phantom(root: Path) -> Path:
    open_source(SPECS["phantom"], root)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "uw_madison": write_uw,
    "acdc": write_acdc,
    "decathlon": write_decathlon,
    "folder": write_pictures,
    "dicom": write_hospital,
    "phantom": write_phantom,
}
SPECS = {name: name for name in WRITERS} | {"phantom": "phantom(patients=4, slices=2, side=16)"}
LABELS = {"dicom": "liver=Liver"}


def opened(name: str, root: Path) -> Source:
    """The source of that format at `root`."""
    return open_source(SPECS[name], root, {"labels": LABELS.get(name, "")})


def read_all(name: str, root: Path) -> None:
    """Reads every scan of the source of that format at `root`."""
    for scan in opened(name, root).scans:
        scan.read()
