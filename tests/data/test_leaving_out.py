"""One scan that cannot be used ends the preparation of all, in a sentence whose flag goes on without it."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.command import medattack
from helpers.dicoms import box, values, write_hospital, write_seg, write_series
from helpers.scans import (
    acdc_paths,
    edit_csv,
    first_png,
    write_acdc,
    write_channels,
    write_decathlon,
    write_pair,
    write_uw,
)
from PIL import Image

from medseg_attack.data.formats.leaving_out import leaving_out
from medseg_attack.data.prepared.unlabelled import prepare_unlabelled, unlabelled
from medseg_attack.errors import InputError
from medseg_attack.types import Task


def cut(path: Path, at: int = 60) -> None:
    path.write_bytes(path.read_bytes()[:at])


def edit(path: Path, name: str, value: object) -> None:
    dataset = pydicom.dcmread(path)
    setattr(dataset, name, value)
    dataset.save_as(path)


def pictures(root: Path) -> Path:
    for name in "abcde":
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(ord(name)).integers(0, 255, (12, 10)).astype(np.uint8)
            Image.fromarray(pixels if kind == "images" else (pixels > 99) * np.uint8(255)).save(
                root / kind / f"{name}.png"
            )
    return root


def hospital(root: Path) -> Path:
    write_hospital(root, patients=4)
    images = write_series(root / "pat5" / "CT", values(5), patient="P5")
    write_seg(root / "pat5" / "seg", images, box(5, 3, 7, 2, 6), ["Liver"])
    return root


def wide(path: Path) -> None:
    Image.fromarray(np.full((12, 17), 255, np.uint8)).save(path)


FAULTS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Path], object]]] = {
    "a missing slice": ("dicom", hospital, lambda root: (root / "pat5/CT/IM003").unlink()),
    "a slice less than its labels": ("dicom", hospital, lambda root: (root / "pat1/CT/IM003").unlink()),
    "an image cut off": ("dicom", hospital, lambda root: cut(root / "pat1/CT/IM002", 400)),
    "an image without an end": ("dicom", hospital, lambda root: cut(root / "pat1/CT/IM002", -40)),
    "no place": ("dicom", hospital, lambda root: edit(root / "pat1/CT/IM002", "ImagePositionPatient", None)),
    "two patients": ("dicom", hospital, lambda root: edit(root / "pat1/CT/IM002", "PatientID", "Q")),
    "no image": ("dicom", hospital, lambda root: edit(root / "pat1/CT/IM002", "SOPClassUID", "1.2.3")),
    "labels cut off": ("dicom", hospital, lambda root: cut(root / "pat1/labels/seg.dcm", 400)),
    "labels of another size": ("dicom", hospital, lambda root: edit(root / "pat1/labels/seg.dcm", "Rows", 5)),
    "a volume cut off": ("acdc", write_acdc, lambda root: cut(acdc_paths(root)[0])),
    "a mask cut off": ("acdc", write_acdc, lambda root: cut(acdc_paths(root)[1])),
    "a value without a class": (
        "acdc",
        write_acdc,
        lambda root: write_pair(*acdc_paths(root), mask=np.full((8, 10, 5), 7)),
    ),
    "a header cut off": ("decathlon", write_decathlon, lambda root: cut(root / "imagesTr/liver_1.nii.gz")),
    "a mask of another size": (
        "decathlon",
        write_decathlon,
        lambda root: write_pair(
            root / "imagesTr/liver_1.nii.gz", root / "labelsTr/liver_1.nii.gz", mask=np.ones((4, 4, 4))
        ),
    ),
    "a mask cut off, without dataset.json": (
        "decathlon",
        write_decathlon,
        lambda root: cut(root / "labelsTr/liver_1.nii.gz"),
    ),
    "a channel less": (
        "decathlon",
        lambda root: write_channels(root, together=False),
        lambda root: (root / "imagesTr/brain_1_0001.nii.gz").unlink(),
    ),
    "no first channel": (
        "decathlon",
        lambda root: write_channels(root, together=False),
        lambda root: (root / "imagesTr/brain_1_0000.nii.gz").unlink(),
    ),
    "a picture cut off": ("folder", pictures, lambda root: cut(root / "images/b.png")),
    "a mask picture cut off": ("folder", pictures, lambda root: cut(root / "masks/b.png")),
    "a mask picture of another size": ("folder", pictures, lambda root: wide(root / "masks/b.png")),
    "a constant picture": (
        "folder",
        pictures,
        lambda root: Image.fromarray(np.ones((12, 10), np.uint8)).save(root / "images/b.png"),
    ),
    "a slice cut off": ("uw_madison", write_uw, lambda root: cut(first_png(root))),
    "a slice of another size": ("uw_madison", write_uw, lambda root: wide(first_png(root))),
    "a slice less than rows": ("uw_madison", write_uw, lambda root: first_png(root).unlink()),
    "a slice of another name": (
        "uw_madison",
        write_uw,
        lambda root: first_png(root).rename(first_png(root).with_name("x.png")),
    ),
    "a row less": ("uw_madison", write_uw, lambda root: edit_csv(root, lambda rows: rows.pop(1))),
    "a row twice": ("uw_madison", write_uw, lambda root: edit_csv(root, lambda rows: rows.append(rows[1]))),
    "no runs": ("uw_madison", write_uw, lambda root: edit_csv(root, lambda rows: rows[1].__setitem__(2, "5 x"))),
}


def flags(said: str) -> list[str]:
    """The words that a refusal names."""
    sentence = " ".join(said[said.index("error:") :].split())
    found = re.search(r"; (--leave-out .+) goes on without it$", sentence)
    assert found, sentence
    return shlex.split(found[1])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_names_the_flag_that_goes_on_without_the_scan(fault: str, tmp_path: Path) -> None:
    format_, write, break_ = FAULTS[fault]
    root = write(tmp_path / "scans")
    break_(root)
    words = ["prepare", root, "--format", format_, "--out", tmp_path / "data", "--json"]
    asked = flags(medattack(*words, code=2).stderr)
    assert not (tmp_path / "data").exists()
    result = medattack(*words, *asked)
    n = {"dicom": 5, "folder": 5}.get(format_, 4)
    assert f'"scans": {n - 1},' in " ".join(result.stdout.split())
    assert f"note: {shlex.join(asked)} leaves out " in " ".join(result.stderr.split())


@pytest.mark.parametrize("kind", ["dicom", "nifti", "picture"])
def test_scans_without_labels_go_on_without_one(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    if kind == "dicom":
        hospital(root)
        (root / "pat5/CT/IM003").unlink()
    elif kind == "nifti":
        write_decathlon(root)
        cut(root / "imagesTr/liver_1.nii.gz")
    else:
        pictures(root)
        cut(root / "images/b.png")
    options = {"window": "percentile", "size": None, "plane": ""}
    with pytest.raises(InputError) as refused:
        prepare_unlabelled(root, tmp_path / "a", Task("t", ("liver",)), options)
    name = flags(f"error: {refused.value}")[1]
    with leaving_out([name]):
        data = prepare_unlabelled(root, tmp_path / "b", Task("t", ("liver",)), options)
    assert len(data.scans) > 3


def test_a_name_of_no_scan_is_refused(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "scans")
    words = ["prepare", root, "--format", "acdc", "--out", tmp_path / "data"]
    said = medattack(*words, "--leave-out", "patient01_frame01", code=2).stderr
    assert "got 'patient01_frame01'; did you mean patient001_frame01" in " ".join(said.split())
    medattack(*words, "--leave-out", "*", code=2)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "fault",
    [
        "a volume cut off",
        "a mask cut off",
        "a header cut off",
        "a mask cut off, without dataset.json",
        "a picture cut off",
        "a mask picture cut off",
        "a slice cut off",
    ],
)
def test_a_name_of_no_scan_is_refused_before_any_scan_is_read(fault: str, tmp_path: Path) -> None:
    format_, write, break_ = FAULTS[fault]
    root = write(tmp_path / "scans")
    break_(root)
    words = ["prepare", root, "--format", format_, "--out", tmp_path / "data", "--leave-out", "nobody"]
    assert "--leave-out: expected the name of a scan" in medattack(*words, code=2).stderr
    options = {"window": "percentile", "size": None, "plane": ""}
    with leaving_out(["nobody"]), pytest.raises(InputError, match="--leave-out: expected the name of a scan"):
        prepare_unlabelled(root, tmp_path / "unlabelled", Task("t", ("liver",)), options)


def test_labels_of_a_series_that_is_left_out_are_given_to_no_other(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_hospital(root, patients=4)
    images = write_series(root / "pat1" / "second", values(3), patient="P1", series="second")
    place = pydicom.dcmread(root / "pat1/CT/IM001").FrameOfReferenceUID
    for image in images:
        edit(image, "FrameOfReferenceUID", place)
    left = pydicom.dcmread(root / "pat1/CT/IM001").SeriesInstanceUID
    words = ["prepare", root, "--format", "dicom", "--out", tmp_path / "data", "--json"]
    assert '"scans": 3,' in " ".join(medattack(*words, "--leave-out", left).stdout.split())


def test_what_is_not_looked_at_without_labels_is_told(tmp_path: Path) -> None:
    root, task = hospital(tmp_path / "scans"), Task("t", ("liver",))
    (root / "notes.txt").write_text("hello")
    (root / "pat1/CT/odd.dcm").write_text("hello")
    (root / "again").symlink_to(root / "pat1")
    with leaving_out(["pat2/*"]):
        source = unlabelled(root, task)
    assert source.notes == (
        "no NIfTI files, DICOM files or pictures, and not looked at: notes.txt",
        "again is left out: it is a link to a folder",
        "pat1/CT/odd.dcm is left out: it does not begin as a DICOM file",
        "--leave-out 'pat2/*' leaves out pat2/CT/IM001, pat2/CT/IM002, pat2/CT/IM003 and 1 more",
    )
    with (
        pytest.raises(InputError, match=r"--leave-out: expected a scan of .+ that is not left out"),
        leaving_out(["*"]),
    ):
        unlabelled(root, task)
