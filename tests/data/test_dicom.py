"""DICOM series and their labels, read from files that the tests write."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.dicoms import (
    COLUMNS,
    ROWS,
    box,
    native,
    square,
    uid,
    values,
    write_enhanced,
    write_hospital,
    write_rtstruct,
    write_seg,
    write_series,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg_attack.data.datasets.label_names import match, parse
from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.dicom.decoders import decoded
from medseg_attack.data.formats.dicom.index import index
from medseg_attack.data.formats.dicom.rtstruct import inside
from medseg_attack.data.formats.dicom.series import Grid, read_stored, series_of
from medseg_attack.data.formats.scan import Scan
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.writing import prepare
from medseg_attack.errors import InputError


def only_scan(root: Path, spec: str = "dicom") -> Scan:
    source = open_source(spec, root)
    assert len(source.scans) == 1
    return source.scans[0].read()


def with_liver(root: Path, **options: object) -> Path:
    """A series with a SEG that covers rows 3 to 6 and columns 2 to 5."""
    images = write_series(root / "ct", **options)  # type: ignore[arg-type]
    write_seg(root / "seg.dcm", images, box(len(images), 3, 7, 2, 6), ["Liver"])
    return root


def test_slices_are_ordered_by_position_and_apart_as_positions_are(tmp_path: Path) -> None:
    scan = only_scan(with_liver(tmp_path))
    assert np.array_equal(scan.stored, values())  # names and instance numbers run the other way
    assert scan.stored.dtype == np.uint16
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))  # SliceThickness says 5
    assert (scan.slope, scan.inter, scan.unit, scan.limits) == (1.0, -1024.0, "HU", (0, 4095))
    assert np.array_equal(scan.labels, box(4, 3, 7, 2, 6)[..., 0])
    corner = scan.affine @ (3, 11, 9, 1)  # type: ignore[operator]
    assert corner[:3] == pytest.approx((20 - 9 * 0.7, 30 - 11 * 0.8, -50 + 3 * 2.5))


@pytest.mark.parametrize(("signed", "bits"), [(False, 12), (True, 12), (True, 16), (False, 16)])
def test_stored_bits_alone_count(tmp_path: Path, signed: bool, bits: int) -> None:
    """Bits above the stored ones are no part of a value, and a sign is that of the stored bits."""
    low = -(2 ** (bits - 1)) if signed else 0
    stored = values(2, low=low, high=low + 2**bits)
    rubbish = (stored & (2**bits - 1)) | (0x5000 if bits == 12 else 0)
    write_series(tmp_path / "ct", rubbish.astype(np.uint16), signed=False, bits=bits, PixelRepresentation=int(signed))
    series = series_of(next(iter(index(tmp_path).images.values())))
    values_read = read_stored(series)
    assert values_read.dtype == (np.int16 if signed else np.uint16)
    assert np.array_equal(values_read, stored)
    assert series.pixels.limits == (low, low + 2**bits - 1)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    ],
)
def test_every_lossless_transfer_syntax_gives_the_same_values(tmp_path: Path, syntax: str) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (2, 40, 36))  # JPEG 2000 takes nothing smaller
    if syntax == ExplicitVRBigEndian:
        for path in write_series(tmp_path, stored):
            image = pydicom.dcmread(path)
            image.PixelData = image.pixel_array.astype(">u2").tobytes()
            image.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(path, image, little_endian=False, implicit_vr=False)
    else:
        write_series(tmp_path, stored, syntax=syntax)
    folder_index = index(tmp_path)
    assert np.array_equal(read_stored(series_of(next(iter(folder_index.images.values())))), stored)


def test_jpeg_lossless_is_decoded_without_gpl(tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm", exc_type=ImportError)
    path = write_series(tmp_path, values(1))[0]
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(decoded(path), values(1))


@pytest.mark.parametrize(
    ("modality", "tags", "inverted"),
    [
        ("CT", {}, False),
        ("CT", {"RescaleType": "HU"}, False),
        ("PT", {"Units": "BQML"}, False),
        ("PT", {"RescaleType": "US"}, True),
        ("MR", {}, True),
    ],
)
def test_monochrome1_turns_round_what_has_no_unit(
    tmp_path: Path, modality: str, tags: dict[str, str], inverted: bool
) -> None:
    stored = values()
    tags = tags | {"PhotometricInterpretation": "MONOCHROME1"}
    source = open_source("dicom", with_liver(tmp_path, stored=stored, scale=(2.0, -10.0), modality=modality, **tags))
    scan = source.scans[0].read()
    assert np.array_equal(scan.stored, stored)
    assert np.array_equal(native(scan), (4095 - stored if inverted else stored) * 2.0 - 10.0)
    (note,) = [note for note in source.notes if "MONOCHROME1" in note]
    assert note.endswith("are turned round") == inverted


def test_enhanced_frames_are_ordered_and_scaled_one_by_one(tmp_path: Path) -> None:
    stored, scales = values(4), [(1.0, 0.0), (2.0, -5.0), (0.5, 3.0), (1.0, 1.0)]
    write_enhanced(tmp_path / "mr.dcm", stored, scales, order=(2, 0, 3, 1))
    contours = [square(3, 2, 4, -50 + z * 2.5) for z in range(4)]
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": contours}, refers_to="enhanced")
    scan = only_scan(tmp_path)
    assert np.array_equal(scan.stored, stored)
    assert scan.frames == tuple(("mr.dcm", n) for n in (1, 3, 0, 2))
    expected = np.stack([image * slope + inter for image, (slope, inter) in zip(stored, scales, strict=True)])
    assert np.array_equal(native(scan), expected)
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


def test_slices_with_scales_of_their_own_are_prepared_as_such(tmp_path: Path) -> None:
    for n in range(1, 4):
        scales = {z: {"RescaleSlope": 1.0 + z, "RescaleIntercept": -7.0 * z} for z in range(3)}
        images = write_series(
            tmp_path / "src" / f"p{n}", values(3, seed=n), patient=f"P{n}", modality="PT", tags=scales
        )
        write_seg(tmp_path / "src" / f"p{n}" / "seg.dcm", images, box(3, 3, 7, 2, 6), ["Liver"])
    source = open_source("dicom", tmp_path / "src")
    list(prepare(source, tmp_path / "out"))
    data = open_prepared(tmp_path / "out")
    for ref in data.refs("all"):
        case = data.read(ref)
        assert case.storage is not None
        assert (case.storage.slope, case.storage.inter) == (1.0 + ref.index, -7.0 * ref.index)
        native = case.storage.stored.numpy() * (1.0 + ref.index) - 7.0 * ref.index
        shown = np.clip((native - case.window.low) / (case.window.high - case.window.low), 0, 1)
        assert np.allclose(case.image.numpy(), shown, atol=1e-6)
        assert data.level(ref) == pytest.approx((1.0 + ref.index) / (case.window.high - case.window.low))


def test_copies_of_an_instance_are_left_out_and_reported(tmp_path: Path) -> None:
    root = with_liver(tmp_path)
    shutil.copy(next((root / "ct").iterdir()), root / "ct" / "a copy")
    source = open_source("dicom", root)
    assert len(source.scans[0].read().stored) == 4
    assert any("1 file left out" in note for note in source.notes)


def test_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        images = write_series(tmp_path / name, values(seed=seed), series=name)
        for path in images:
            path.rename(tmp_path / f"{name}_{path.name}")
        images = [tmp_path / f"{name}_{path.name}" for path in images]
        write_seg(tmp_path / f"{name}.dcm", images, box(4, 3, 7, 2, 6), ["Liver"])
    write_series(tmp_path / "scout", values(1), series="scout")
    source = open_source("dicom", tmp_path)
    assert len(source.scans) == 2
    assert any("scout is left out" in note for note in source.notes)
    scan = open_source("dicom", tmp_path, {"series": (uid("P1", "two"),)}).scans
    assert len(scan) == 1
    assert np.array_equal(scan[0].read().stored, values(seed=2))


def test_one_patient_is_one_group_and_no_header_is_a_name(tmp_path: Path) -> None:
    root = write_hospital(tmp_path, patients=3)
    images = write_series(root / "elsewhere", values(3, seed=9), patient="P1", series="later")
    write_seg(root / "elsewhere.dcm", images, box(3, 3, 7, 2, 6), ["Liver"])
    source = open_source("dicom", root)
    assert len(source.scans) == 4
    assert len({scan.group for scan in source.scans}) == 3
    assert not any("P1" in scan.id or "P1" in scan.group for scan in source.scans)
    by_folder = open_source("dicom(patient='folder')", root)
    assert len({scan.group for scan in by_folder.scans}) == 4
    names = [word for scan in by_folder.scans for word in (scan.id, scan.group)]
    assert not any(name in word for word in names for name in ("pat", "elsewhere"))
    for path in (root / "pat2").rglob("IM*"):  # as if of P1: folders tell apart what ids do not
        image = pydicom.dcmread(path)
        image.PatientID, image.StudyInstanceUID = "P1", uid("P1", "study")
        image.save_as(path)
    again = open_source("dicom(patient='folder')", root)
    assert len({scan.group for scan in again.scans}) == 4


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_seg_of_every_kind(tmp_path: Path, kind: str) -> None:
    """Slice 1 has no frame, images are given out of order, and segments overlap, but not in a labelmap."""
    images = write_series(tmp_path / "ct", values(3))
    first, second = box(3, 3, 7, 2, 6), box(3, 6 if kind != "LABELMAP" else 7, 9, 4, 9)
    first[1] = second[1] = 0
    second[2] = 0
    masks = np.concatenate((first, second), axis=3)
    order = [2, 0, 1]  # images are given out of order, and so are frames
    array = masks[order]
    if kind == "FRACTIONAL":
        array = np.where(array, 0.6, 0.2).astype(np.float32)
    write_seg(tmp_path / "seg.dcm", [images[n] for n in order], array, ["Liver", "Spleen"], kind=kind)
    scan = only_scan(tmp_path)
    for k in range(2):
        assert np.array_equal((scan.labels >> k) & 1, masks[..., k])
    if kind == "FRACTIONAL":
        assert not only_scan(tmp_path, "dicom(threshold=0.7)").labels.any()
        assert (only_scan(tmp_path, "dicom(threshold=0.1)").labels == 3).all()
        assert np.array_equal(only_scan(tmp_path, "dicom(threshold=0.6)").labels, scan.labels)  # 153 of 255 is 0.6


def test_segments_are_chosen_named_and_united(tmp_path: Path) -> None:
    images = write_series(tmp_path / "ct", values(2))
    masks = np.concatenate([box(2, 0, 3, 0, 3), box(2, 2, 5, 2, 5), box(2, 8, 9, 8, 9)], axis=3)
    write_seg(tmp_path / "seg.dcm", images, masks, ["Kidney left", "Kidney right", "Liver"])
    source = open_source("dicom", tmp_path, {"labels": "liver=liver,kidney=Kidney*"})
    assert source.task.classes == ("liver", "kidney")
    assert not source.task.exclusive
    labels = source.scans[0].read().labels
    assert np.array_equal(labels & 1, masks[..., 2])
    assert np.array_equal(labels >> 1, masks[..., 0] | masks[..., 1])
    assert open_source("dicom", tmp_path).task.classes == ("Kidney left", "Kidney right", "Liver")


def test_an_exclusive_task_has_a_background_and_no_overlap(tmp_path: Path) -> None:
    images = write_series(tmp_path / "ct", values(2))
    masks = np.concatenate([box(2, 0, 3, 0, 3), box(2, 5, 7, 5, 7)], axis=3)
    write_seg(tmp_path / "seg.dcm", images, masks, ["a", "b"])
    source = open_source("dicom(exclusive=True)", tmp_path)
    assert source.task.classes == ("background", "a", "b")
    assert np.array_equal(source.scans[0].read().labels, masks[..., 0] + 2 * masks[..., 1])
    write_seg(tmp_path / "seg.dcm", images, np.concatenate([box(2, 0, 3, 0, 3)] * 2, axis=3), ["a", "b"])
    with pytest.raises(InputError, match="do not overlap, got b"):
        only_scan(tmp_path, "dicom(exclusive=True)")


def test_contours_are_filled_by_the_even_odd_rule(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", values(3))
    ring = [square(1, 1, 8, -50.0), square(3, 3, 4, -50.0), square(4, 4, 2, -50.0)]
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [*ring, square(2, 2, 3, -45.0)]})
    expected = np.zeros((3, ROWS, COLUMNS), int)
    expected[0, 1:9, 1:9] = 1
    expected[0, 3:7, 3:7] = 0
    expected[0, 4:6, 4:6] = 1
    expected[2, 2:5, 2:5] = 1
    assert np.array_equal(only_scan(tmp_path).labels, expected)


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none() -> None:
    """A plane cut along a slanted line through pixel centres, against a count of crossings for each pixel."""
    corners = np.array([(0, 0), (0, 9), (9, 9), (9, 0)], float)
    upper, lower = np.array([corners[0], corners[1], corners[2]]), np.array([corners[0], corners[2], corners[3]])
    halves = [inside(half, (10, 10)) for half in (upper, lower)]
    assert not (halves[0] & halves[1]).any()
    assert np.array_equal(halves[0] | halves[1], inside(corners, (10, 10)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygon = rng.uniform(-3, 14, (7, 2))
        mask = inside(polygon, (ROWS, COLUMNS))
        for row in range(ROWS):
            for column in range(COLUMNS):
                crossed = sum(
                    (a[0] <= row) != (b[0] <= row) and a[1] + (row - a[0]) * (b[1] - a[1]) / (b[0] - a[0]) <= column
                    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)
                )
                assert mask[row, column] == crossed % 2


def test_contours_are_placed_by_geometry_and_those_off_the_series_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", values(3))
    off = [square(2, 2, 3, z) for z in (-48.7, -60.0, 100.0)]
    write_rtstruct(tmp_path / "rs.dcm", {"Liver": [square(2, 2, 3, -47.5 + 0.01), *off]}, refers_to=None)
    source = open_source("dicom", tmp_path)
    assert any("3 contours of Liver" in note for note in source.notes)
    labels = source.scans[0].read().labels
    assert labels.sum() == 9
    assert labels[1, 2:5, 2:5].all()


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "IPL"])
def test_nifti_labels_lie_where_their_affine_says(tmp_path: Path, codes: str) -> None:
    scan = only_scan(with_liver(tmp_path))
    labels = np.zeros((4, ROWS, COLUMNS), np.uint8)
    labels[1, 2:5, 1:8], labels[3, 8:, 8:] = 1, 2
    # file axes of the first volume: column, row, slice
    assert scan.affine is not None
    affine = scan.affine[:, [2, 1, 0, 3]]
    ras = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(ras.as_reoriented(turn), tmp_path / "labels_seg.nii.gz")
    first = only_scan(tmp_path, "dicom(masks='*_seg.nii.gz', labels='one=1,two=2', exclusive=True)")
    assert np.array_equal(first.labels, labels)
    moved = affine.copy()
    moved[0, 3] += 0.2  # of 0.7 mm
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), moved), tmp_path / "labels_seg.nii.gz")
    with pytest.raises(InputError, match="expected labels on the voxels of a series"):
        open_source("dicom(masks='*_seg.nii.gz')", tmp_path)


def test_choices_of_labels() -> None:
    assert parse("") == {}
    assert {name: tuple(map(str, of)) for name, of in parse("a=x|y*, b=z").items()} == {"a": ("x", "y*"), "b": ("z",)}
    assert match(parse("a=X|y*"), ["x", "Y1", "z"], "f") == {"a": ("x", "Y1")}
    for text in ("a,", "a=", "=x", "a=x,a=y", "a=x|"):
        with pytest.raises(InputError, match="expected CLASS=NAME"):
            parse(text)


@pytest.mark.parametrize("degrees", [0.0, 12.0, 30.0])
def test_slices_of_a_tilted_gantry_are_apart_along_their_normal(degrees: float) -> None:
    """The table moves 5 mm; slices that are tilted against it lie 5 mm times the cosine apart."""
    tilt = np.radians(degrees)
    rows, columns = np.array([0, np.cos(tilt), np.sin(tilt)]) * 0.8, np.array([0.5, 0, 0])
    grid = Grid((3, 4, 5), np.zeros(3), np.stack([np.array([0, 0, 5.0]), rows, columns], axis=1))
    assert grid.spacing_mm == pytest.approx((5 * np.cos(tilt), 0.8, 0.5))
    assert grid.lean == pytest.approx(degrees, abs=1e-5)
