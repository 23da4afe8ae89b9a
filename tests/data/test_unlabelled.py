"""Scans without labels: NIfTI, DICOM and pictures in folders of any depth, each read as a labelled one would be."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import dicoms
from PIL import Image

from medseg_attack.data.prepared.unlabelled import prepare_unlabelled, unlabelled
from medseg_attack.errors import InputError
from medseg_attack.types import Task

TASK = Task("t", ("a", "b"))


def test_volumes_series_and_pictures_are_found_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "day").mkdir(parents=True)
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 3.0, 1.0])), root / "day/scan.nii.gz")
    stored = dicoms.values()
    dicoms.write_series(root / "pacs", stored)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(root / "a.png")
    (root / "notes.txt").write_text("hello")
    scans = {scan.id: scan.read() for scan in unlabelled(root, TASK).scans}
    assert [*scans][:2] == ["a.png", "day_scan"]
    (series,) = [name for name in scans if name.startswith("pacs_")]
    assert not any(scan.labels.any() for scan in scans.values())
    assert scans["a.png"].stored.shape == (1, 16, 16)
    np.testing.assert_array_equal(scans["day_scan"].stored, values.transpose(2, 1, 0))
    np.testing.assert_array_equal(scans[series].stored, stored)
    assert scans[series].unit == "HU"


def test_they_are_prepared_with_the_window_and_size_that_are_asked_for(tmp_path: Path) -> None:
    dicoms.write_series(tmp_path / "in/pacs", dicoms.values())
    data = prepare_unlabelled(tmp_path / "in", tmp_path / "out", TASK, {"window": "-100,300", "size": [8, 9]})
    case = data.read(data.refs("all")[0])
    assert (case.window.low, case.window.high) == (-100, 300)
    assert case.image.shape == (1, 8, 9)
    assert not case.target.any()


def test_channels_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    dicoms.write_series(tmp_path / "in/pacs", dicoms.values())
    (scan,) = unlabelled(tmp_path / "in", Task("t", ("a",), channels=2)).scans
    with pytest.raises(InputError, match="expected 2 channels in pacs_"):
        scan.read()


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="expected NIfTI files, DICOM series or pictures in"):
        unlabelled(tmp_path, TASK)
