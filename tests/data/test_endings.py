"""Endings of files in capitals, as cameras and old systems write them, are endings all the same."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.scans import acdc_paths, write_acdc, write_decathlon
from helpers.sources import WRITERS, opened, write_pictures

from medseg_attack.data.datasets.dicom.dataset import _is_named
from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.data.prepared.unlabelled import unlabelled
from medseg_attack.errors import InputError
from medseg_attack.exports.writing import _nifti
from medseg_attack.types import Task

ENDINGS = (".nii.gz", ".nii", ".png", ".dcm")


def in_capitals(path: Path) -> Path:
    """The file, renamed."""
    suffix = next(suffix for suffix in ENDINGS if path.name.endswith(suffix))
    return path.rename(path.with_name(path.name.removesuffix(suffix) + suffix.upper()))


def pixels(source: Source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    scans = {scan.id: scan.read() for scan in source.scans}
    return {name: (scan.stored, scan.labels) for name, scan in scans.items()}


@pytest.mark.parametrize("which", ["all", "the first", "all but the last"])
@pytest.mark.parametrize("form", sorted(set(WRITERS) - {"phantom"}))  # whose files medattack makes itself
def test_a_source_with_endings_in_capitals_is_the_same_source(form: str, which: str, tmp_path: Path) -> None:
    root = WRITERS[form](tmp_path / "source")
    before = pixels(opened(form, root))
    files = [path for path in sorted(root.rglob("*")) if path.name.endswith(ENDINGS)]
    for path in files if which == "all" else files[:1] if which == "the first" else files[:-1]:
        in_capitals(path)
    after = pixels(opened(form, root))
    assert list(after) == list(before)
    assert all(np.array_equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))


@pytest.mark.parametrize("form", ["decathlon", "folder", "dicom"])
def test_scans_without_labels_may_have_endings_in_capitals(form: str, tmp_path: Path) -> None:
    root = WRITERS[form](tmp_path / "source")
    task = Task("t", ("background", "organ"), exclusive=True)
    before = [scan.id for scan in unlabelled(root, task).scans]
    for path in sorted(root.rglob("*")):
        if path.name.endswith((".nii.gz", ".png")):
            in_capitals(path)
    after = [scan.id for scan in unlabelled(root, task).scans]
    assert after == [name.replace(".png", ".PNG") for name in before]


def test_label_maps_that_a_pattern_names_may_have_endings_in_capitals() -> None:
    assert _is_named(Path("pat1/A_seg.NII.GZ"), "*_seg.nii.gz")
    assert _is_named(Path("pat1/A_seg.NII.GZ"), "*_seg.NII.GZ")
    assert not _is_named(Path("pat1/A_SEG.nii.gz"), "*_seg.nii.gz")


def test_a_copy_of_a_file_with_an_ending_in_capitals_is_compressed_like_the_file(tmp_path: Path) -> None:
    image, _ = acdc_paths(write_acdc(tmp_path / "acdc"))
    stored = np.zeros((8, 10, 5), np.int16)
    assert _nifti(in_capitals(image), stored, keep_headers=False)[:2] == b"\x1f\x8b"


def lone_picture(root: Path, odd: Callable[[Path], None]) -> Source:
    odd(write_pictures(root) / "images" / "z9.png")
    return open_source("folder", root)


def lone_mask(root: Path, odd: Callable[[Path], None]) -> Source:
    odd(write_pictures(root) / "masks" / "z9.png")
    return open_source("folder", root)


def lone_volume(root: Path, odd: Callable[[Path], None]) -> Source:
    odd(write_decathlon(root) / "imagesTr" / "liver_99.nii.gz")
    return open_source("decathlon", root)


def lone_labels(root: Path, odd: Callable[[Path], None]) -> Source:
    odd(write_decathlon(root) / "labelsTr" / "liver_99.nii.gz")
    return open_source("decathlon", root)


def lone_frame(root: Path, odd: Callable[[Path], None]) -> Source:
    odd(write_acdc(root) / "training" / "patient001" / "patient001_frame12.nii.gz")
    return open_source("acdc", root)


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
    ],
)
@pytest.mark.parametrize("source", [lone_picture, lone_mask, lone_volume, lone_labels, lone_frame])
def test_what_has_no_partner_and_is_no_file_is_called_what_it_is(
    source: Callable[[Path, Callable[[Path], None]], Source], odd: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    try:
        words = " ".join(source(tmp_path / "source", odd).notes)
    except InputError as error:  # masks may be in folders, so that all that is in masks/ is looked at
        words = str(error) if source is lone_mask else ""
    assert kind in words or "got both (z9.png/)" in words
