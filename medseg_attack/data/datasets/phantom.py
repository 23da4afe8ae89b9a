"""The built-in data set: abdominal MRI that nobody was scanned for, in the layout of UW-Madison."""

import csv
import dataclasses
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg_attack.data.datasets import phantom_anatomy as anatomy
from medseg_attack.data.datasets.source import Source
from medseg_attack.data.datasets.uw_madison import COLUMNS, TASK, UWMadison
from medseg_attack.data.formats import rle
from medseg_attack.data.formats.png16 import write_png16
from medseg_attack.errors import InputError, require
from medseg_attack.registry import register, spec
from medseg_attack.storage.files import is_part, writing
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.storage.locks import LOCK, is_abandoned, locked

CARD = "phantom.json"  # says what a tree was made with
TABLE = "train.csv"


@register("phantom", kind="dataset")
@dataclass(frozen=True)
class Phantom:
    """Synthetic abdominal MRI, made in SOURCE in the UW-Madison layout if nothing is there.

    Equal options give equal scans, bit for bit. Each patient has one or two days, as in the original.

    Attributes:
        slices: per scan.
        side: rows and columns of each.
        seed: of the patients.
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.

    Raises:
        InputError: a field is out of range.
    """

    patients: int = 18
    slices: int = 10
    side: int = 96
    seed: int = 0
    patient: str = ""

    def __post_init__(self) -> None:
        require(self, patients=3, slices=1, side=16, seed=0)

    def listing(self, root: Path) -> Source:
        """The phantom's scans; makes them first where there are none.

        Raises:
            InputError: `root` holds something else, or a phantom with other options.
        """
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            self.write(root)
        if not (root / CARD).is_file():
            raise InputError(f"expected an empty folder or a phantom in {root}, got something else; give another one")
        written = read_json(root / CARD).get("format")
        if written != self._card:
            raise InputError(f"expected the phantom {self._card} in {root}, got {written}; give another folder")
        source = UWMadison(drop="none", patient=self.patient).listing(root)
        return dataclasses.replace(source, format=spec(self), task=dataclasses.replace(TASK, name="phantom"))

    @property
    def _card(self) -> str:
        """The spec of what is written."""
        return spec(dataclasses.replace(self, patient=""))

    def write(self, root: Path) -> None:
        """Writes the tree, in one move, so that a killed run leaves nothing that looks like one.

        Raises:
            InputError: the system does not let it be written.
        """
        part = root.with_name(f".{root.name}.{secrets.token_hex(4)}.part")
        with writing(root):
            _remove_parts(root)
            try:
                with locked(part):
                    self._write(part)
                    (part / LOCK).unlink(missing_ok=True)
                    os.replace(part, root)
            except OSError:
                if not (root / CARD).is_file():  # or another process was ready first
                    raise
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def _write(self, root: Path) -> None:
        with (root / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for case, image, masks in self._slices():
                write_png16(_path(root, case, self.side), image)
                table.writerows((case, organ, rle.encode(masks[anatomy.ORGANS.index(organ)])) for organ in TASK.classes)
        write_json(root / CARD, {"format": spec(self)})

    def _slices(self) -> Iterator[tuple[str, NDArray[np.uint16], NDArray[np.bool_]]]:
        """Slice id, pixels and masks (organs, rows, columns)."""
        for number in range(1, self.patients + 1):
            rng = np.random.default_rng([self.seed, number])
            patient = anatomy.body(rng)
            for date in sorted(rng.choice(np.arange(40), size=rng.integers(1, 3), replace=False).tolist()):
                today = anatomy.day(rng, patient)
                images, masks = anatomy.draw(patient, today, rng, self.slices, self.side)
                gain = rng.uniform(800, 12000)  # scanners have no unit: the originals' scales differ by 100 x
                pixels = np.round(images * gain).clip(0, 65535).astype(np.uint16)
                for i in range(self.slices):
                    yield f"case{number}_day{date}_slice_{i + 1:04d}", pixels[i], masks[:, i]


def _remove_parts(root: Path) -> None:
    """Removes what killed processes left of the tree `root`; what a process holds, or a user named so, stays."""
    for path in root.parent.iterdir() if root.parent.is_dir() else ():
        if not is_part(path.name, re.escape(root.name)) or path.is_symlink():
            continue
        is_begun = (path / TABLE).exists() or _is_old(path / LOCK)  # else its process may not hold the lock yet
        if is_begun and is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_old(lock: Path) -> bool:
    """Whether a lock is the only file beside it and was made a minute ago or earlier."""
    return os.listdir(lock.parent) == [lock.name] and time.time() - lock.stat().st_mtime > 60


def _path(root: Path, case: str, side: int) -> Path:
    scan, _, number = case.partition("_slice_")
    folder = root / "train" / scan.partition("_")[0] / scan / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"slice_{number}_{side}_{side}_3.00_3.00.png"
