"""PixelPaddingValue: pixels that were never measured decide no window and are never perturbed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from helpers.dicoms import EPS, attacked, box, copies, medattack, native, values, write_seg, write_series

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.scan import Scan
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.windows import window_rule
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.threat.balls.norms import Linf


def padded(stored: np.ndarray, value: int) -> np.ndarray:
    """With the first three columns of every slice never measured."""
    stored = stored.copy()
    stored[..., :3] = value
    return stored


def write_patients(root: Path, stored: Callable[[int], np.ndarray], **options: object) -> Path:
    for n in range(1, 4):
        images = write_series(root / f"p{n}" / "ct", stored(n), patient=f"P{n}", **options)  # type: ignore[arg-type]
        write_seg(root / f"p{n}" / "seg.dcm", images, box(len(images), 3, 7, 4, 8), ["Liver"])
    return root


def first_scan(root: Path) -> Scan:
    return open_source("dicom", root).scans[0].read()


def unsigned_in_signed(image: Path) -> None:
    """As some scanners write it: -2000 as the unsigned 63536, of pixels that are signed."""
    dataset = pydicom.dcmread(image)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(image)


@pytest.mark.parametrize("quirk", [False, True])
def test_padding_is_as_stored_and_in_no_window_and_no_range(tmp_path: Path, quirk: bool) -> None:
    def stored(n: int) -> np.ndarray:
        return padded(values(3, seed=n, low=-100, high=2000), -2000)

    root = write_patients(tmp_path / "scans", stored, signed=True, bits=16, PixelPaddingValue=-2000)
    if quirk:
        for image in root.rglob("IM*"):
            unsigned_in_signed(image)
    scan = first_scan(root)
    assert scan.padding == (-2000, -2000)
    assert np.array_equal(np.isnan(native(scan)), scan.stored == -2000)
    measured = scan.stored[scan.stored != -2000] - 1024.0
    list(prepare(open_source("dicom", root), tmp_path / "data", Options()))
    data = open_prepared(tmp_path / "data")
    expected = tuple(np.percentile(measured, (0.5, 99.5)).tolist())
    assert expected in [record.windows[0] for record in data.records.values()]
    assert data.summary["intensity"][0] >= -100 - 1024
    assert data.read(data.refs("all")[0]).storage.padding == (-2000, -2000)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["percentile", "range", "slice_max"])
def test_every_rule_is_blind_to_padding(text: str) -> None:
    plain = np.random.default_rng(0).uniform(-5, 9, (3, 6, 7))
    holed = np.concatenate([plain, np.full((3, 6, 2), np.nan)], axis=2)
    assert np.array_equal(window_rule(text)(holed), window_rule(text)(plain))


def test_a_slice_of_padding_alone_has_a_window() -> None:
    slices = np.stack([np.full((4, 4), np.nan), np.full((4, 4), 7.0)])
    assert window_rule("slice_max")(slices).tolist() == [[0, 1], [0, 7]]


def test_a_range_of_padding(tmp_path: Path) -> None:
    stored = padded(values(3, low=100), 5)
    stored[..., 1], stored[..., 2] = 3, 6
    write_patients(tmp_path, lambda n: stored, PixelPaddingValue=5, PixelPaddingRangeLimit=3)
    scan = first_scan(tmp_path)
    assert scan.padding == (3, 5)
    assert np.array_equal(np.isnan(native(scan)), (stored >= 3) & (stored <= 5))


def test_padding_that_differs_from_slice_to_slice_is_refused(tmp_path: Path) -> None:
    write_patients(tmp_path, lambda n: values(3, seed=n), PixelPaddingValue=5, tags={1: {"PixelPaddingValue": 6}})
    with pytest.raises(InputError, match="one PixelPaddingValue in all slices, got 5 to 5 in IM"):
        open_source("dicom", tmp_path)


def test_an_image_of_padding_alone_is_refused(tmp_path: Path) -> None:
    write_patients(tmp_path / "scans", lambda n: np.full((3, 12, 10), 9), PixelPaddingValue=9)
    said = " ".join(
        medattack("prepare", tmp_path / "scans", "--format", "dicom", "--out", tmp_path / "out", code=2).stderr.split()
    )
    assert "expected an image, got PixelPaddingValue in every voxel of" in said
    assert not (tmp_path / "out").exists()


def test_padding_inside_of_the_window_is_left_alone_and_no_other_pixel_becomes_it(tmp_path: Path) -> None:
    """Stored 0 is padding and 1 is air: an attack of 40 levels may take 30 down to 1 and no further."""
    root = write_patients(
        tmp_path / "scans",
        lambda n: padded(values(3, seed=n, low=1, high=80), 0),
        scale=(1.0, 0.0),
        PixelPaddingValue=0,
    )
    run = attacked(tmp_path, root, window="0,100")
    n_stopped = 0
    for pair in copies(run, root):
        before, after = (pydicom.dcmread(path).pixel_array.astype(int) for path in pair)
        assert np.array_equal(after == 0, before == 0)
        assert np.abs(after - before).max() == EPS
        n_stopped += int(((after == 1) & (before > 1)).sum())
    assert n_stopped > 0
    medattack("verify", run)


@pytest.mark.parametrize(("padding", "down", "up"), [((0, 10), 11, 50), ((60, 200), 0, 59), (None, 0, 60)])
def test_a_change_stops_beside_padding(tmp_path: Path, padding: tuple[int, int] | None, down: int, up: int) -> None:
    write_patients(
        tmp_path / "scans", lambda n: padded(values(3, seed=n, low=20, high=51), 255), scale=(1.0, 0.0), bits=8
    )
    list(prepare(open_source("dicom", tmp_path / "scans"), tmp_path / "data", Options(window=window_rule("0,255"))))
    data = open_prepared(tmp_path / "data")
    case = data.read(data.refs("all")[0])
    object.__setattr__(case.storage, "padding", padding)
    levels = StoredValues.of([case], "cpu")
    assert levels is not None
    x0 = case.image[None]
    for sign, end in ((-1, down), (1, up)):
        rounded = levels.nearest(x0 + sign * 40 / 255, x0, Linf(40 / 255))[..., 3:]
        moved = case.storage.stored[None, ..., 3:].double() + sign * 40  # type: ignore[union-attr]
        expected = moved.clamp(min=end) if sign < 0 else (moved if padding != (60, 200) else moved.clamp(max=end))
        assert torch.equal(rounded, expected)
