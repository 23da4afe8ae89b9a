"""Perturbed scans on another grid than their source's: NIfTI of every format, which say their grid and are verified."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.command import medattack
from helpers.dicoms import tiny_model, write_hospital
from helpers.scans import write_acdc, write_channels, write_uw
from helpers.sources import LABELS, SPECS, write_phantom, write_pictures
from PIL import Image

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared

EPS = 8 / 255


def write_colours(root: Path) -> Path:
    """Five pictures of three colours, each with a mask."""
    for n in range(5):
        pixels = np.random.default_rng(n).integers(0, 255, (10, 12, 3))
        for folder, array in (("images", pixels), ("masks", pixels[..., 0] > 200)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(root / folder / f"p{n}.png")
    return root


SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "acdc": ("acdc", write_acdc),
    "channels": ("decathlon", lambda root: write_channels(root, together=True)),
    "channels in files": ("decathlon", lambda root: write_channels(root, together=False)),
    "colours": ("folder", write_colours),
    "dicom": ("dicom", write_hospital),
    "folder": ("folder", write_pictures),
    "phantom": (SPECS["phantom"], write_phantom),
    "uw_madison": ("uw_madison", write_uw),
}


def attacked(root: Path, name: str, size: str) -> Path:
    """The folder of a run on the resampled scans of a source, perturbed ones stored; the data beside it."""
    kind, write = SOURCES[name]
    words = ["--format", kind, "--labels", LABELS.get(kind, ""), "--size", size, "--out", root / "data"]
    said = medattack("prepare", write(root / "scans"), *words).stderr
    assert "of resampled scans are NIfTI files" in " ".join(said.split())
    tiny_model(root / "model", open_prepared(root / "data"))
    words = ["--data", root / "data", "-m", root / "model", "--attack", "fgsm", "--eps", "8/255", "--split", "all"]
    medattack("attack", *words, "--save-adversarial", "all", "--no-control", "--no-checks", "--out", root / "runs")
    return next(file.parent for file in (root / "runs").rglob("run.json"))


def test_every_data_set_is_among_them() -> None:
    assert {kind.partition("(")[0] for kind, _ in SOURCES.values()} == set(registry.names("dataset"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_resampled_scan_is_a_nifti_file_with_the_spacing_of_its_grid(tmp_path: Path, name: str) -> None:
    run = attacked(tmp_path, name, "16,8")
    data = open_prepared(tmp_path / "data")
    files = sorted((run / "adversarial").rglob("*.nii.gz"))
    assert [file.name for file in files] == sorted(f"{scan}.nii.gz" for scan in data.records)
    for file in files:
        record, image = data.records[file.name.removesuffix(".nii.gz")], nibabel.load(file)
        through, row, column = record.spacing_mm
        assert image.shape[:3] == (8, 16, len(record.case_ids))
        assert image.header.get_zooms()[:3] == pytest.approx((column, row, through or 1))
        stored = np.asarray(data.stored(record.id))
        after = np.moveaxis(np.atleast_3d(image.dataobj.get_unscaled()).reshape(*image.shape[:3], -1), -1, 0)
        change = np.abs(after.transpose(0, 3, 2, 1) - stored)
        assert change.max() > 0
        if isinstance(record.slope, float):  # else windows and scales differ from channel to channel, or slice to slice
            assert np.allclose(image.dataobj.slope, record.slope)
            windows = np.array(record.windows)
            widths = windows[:, 1] - windows[:, 0]
            assert (change.max() * abs(record.slope) <= EPS * widths.max() * (1 + 1e-6)).all()
    (verified,) = json.loads(medattack("verify", run, "--json").stdout)
    assert verified["verified"], verified


def test_a_scan_that_keeps_its_number_of_pixels_is_no_copy_of_integers(tmp_path: Path) -> None:
    """--size with the grid that the scans have: floats, of which no PNG is written."""
    run = attacked(tmp_path, "folder", "16,12")
    assert not list((run / "adversarial").rglob("*.png"))
    assert json.loads(medattack("verify", run, "--json").stdout)[0]["verified"]


def test_copies_of_resampled_dicom_hold_nothing_of_its_headers(tmp_path: Path) -> None:
    run = attacked(tmp_path, "dicom", "16,8")
    texts = [gzip.decompress(file.read_bytes()) for file in (run / "adversarial").rglob("*.nii.gz")]
    texts += [file.read_bytes() for file in (run / "adversarial").rglob("*.json")]
    assert texts
    names = {path.name for path in (tmp_path / "scans").rglob("*")}
    assert not [name for name in names for text in texts if len(name) > 4 and name.encode() in text]


@pytest.mark.parametrize(("field", "value", "said"), [("value", 1e4, "its budget"), ("srow_x", 5, "affine of")])
def test_a_resampled_copy_that_was_changed_is_caught(tmp_path: Path, field: str, value: float, said: str) -> None:
    from medseg_attack.storage.files import file_hash

    run = attacked(tmp_path, "uw_madison", "16,8")
    file = min((run / "adversarial").glob("*.nii.gz"))
    content = bytearray(gzip.decompress(file.read_bytes()))
    if field == "value":
        content[-4:] = np.float32(value).tobytes()
    else:
        changed = nibabel.Nifti1Header(bytes(content[:348]))
        changed[field] = changed[field] + value
        content[:348] = changed.binaryblock
    file.write_bytes(gzip.compress(bytes(content)))
    sidecar = file.with_name(f"{file.name}.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": file_hash(file)}))
    assert said in " ".join(medattack("verify", run, code=1).stdout.split())
