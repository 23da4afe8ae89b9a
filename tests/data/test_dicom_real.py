"""Real DICOM against truths that others made: official NIfTI masks, NRRD files, counts, intensities of organs."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.dicoms import EPS, attacked, copies, medattack, native, square, uid, values, write_rtstruct, write_series
from typer.testing import CliRunner

from medseg_attack.cli import app
from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.dicom.seg import read_seg
from medseg_attack.data.formats.dicom.series import Grid
from medseg_attack.data.formats.scan import Scan

pytestmark = pytest.mark.data
Find = Callable[[str], Path]
CT3, SEGMENTATIONS = "ct-3slice", "data/segmentations"


def only_scan(root: Path, spec: str) -> Scan:
    source = open_source(spec, root)
    assert len(source.scans) == 1
    return source.scans[0].read()


def nrrd(path: Path) -> np.ndarray:
    """An uncompressed or gzipped NRRD in its (x, y, z) order, as (slices, rows, columns)."""
    content = path.read_bytes()
    head, _, body = content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    if fields["encoding"] in ("gzip", "gz"):
        import zlib

        body = zlib.decompress(body, wbits=31)
    kinds = {"short": "<i2", "int16": "<i2", "unsigned char": "<u1", "uint8": "<u1"}
    return np.frombuffer(body, kinds[fields["type"]]).reshape([int(n) for n in fields["sizes"].split()][::-1])


def test_ibsi_is_the_official_mask_and_the_official_hu(real_data: Find) -> None:
    root = real_data("ibsi_ct_phantom")
    scan = only_scan(root, "dicom")
    image = nibabel.load(root / "nifti/image/phantom.nii.gz")
    mask = np.asarray(nibabel.load(root / "nifti/mask/mask.nii.gz").dataobj)
    assert int(scan.labels.sum()) == 125_256
    assert scan.affine is not None
    at = np.argwhere(np.ones(scan.stored.shape, bool))
    voxels = np.c_[at, np.ones(len(at))] @ scan.affine.T @ np.linalg.inv(image.affine).T
    i, j, k = np.round(voxels[:, :3]).astype(int).T
    assert np.abs(voxels[:, :3] - np.stack((i, j, k), axis=1)).max() < 0.02
    assert np.array_equal(scan.labels[tuple(at.T)], mask[i, j, k])
    assert np.array_equal(native(scan)[tuple(at.T)], np.asarray(image.dataobj)[i, j, k])


def test_ibsi_voxels_are_told_by_prepare(real_data: Find, tmp_path: Path) -> None:
    """Two made patients with 9 voxels each stand beside it, since a data set is split by patient."""
    (tmp_path / "scans").mkdir()
    for path in real_data("ibsi_ct_phantom").rglob("*.dcm"):
        (tmp_path / "scans" / path.name).write_bytes(path.read_bytes())
    for patient in ("A", "B"):
        write_series(tmp_path / "scans" / patient, values(3), patient=patient)
        write_rtstruct(tmp_path / "scans" / patient / "rs", {"gtv 1": [square(2, 2, 3, -50.0)]}, patient=patient)
    words = ("prepare", tmp_path / "scans", "--format", "dicom", "--labels", "tumour=GTV*", "--out", tmp_path / "out")
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["classes"] == {"tumour": {"slices": 26 + 2, "voxels": 125_256 + 18}}
    counts = [json.loads(path.read_text())["classes"]["tumour"] for path in (tmp_path / "out/scans").iterdir()]
    assert {"slices": 26, "voxels": 125_256} in counts


def test_dcmqi_liver(real_data: Find) -> None:
    root = real_data("dcmqi")
    scan = only_scan(root, "dicom(labels='liver=Liver', masks='liver.dcm')")
    assert [int(n) for n in scan.labels.sum(axis=(1, 2))] == [36_233, 35_645, 35_220]
    assert np.array_equal(scan.labels, nrrd(root / SEGMENTATIONS / "liver_seg.nrrd"))
    assert scan.spacing_mm[0] == pytest.approx(1.0)  # SliceThickness says 1.25
    assert scan.padding == (-2000, -2000)  # around the field of view, 55,772 pixels of each slice
    assert [int(np.isnan(plane).sum()) for plane in native(scan)] == [55_772] * 3
    means = [round(native(scan)[n][scan.labels[n] > 0].mean()) for n in range(3)]
    assert means == [40, 38, 33]


def test_dcmqi_segments_that_overlap_with_frames_out_of_order(real_data: Find) -> None:
    root = real_data("dcmqi")
    source = open_source("dicom(masks='partial_overlaps.dcm')", root)
    assert source.task.classes == ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    labels = source.scans[0].read().labels
    truth = [nrrd(root / SEGMENTATIONS / f"partial_overlaps-{n}.nrrd") for n in (1, 2, 3)]
    for number in range(1, 6):
        assert np.array_equal((labels >> (number - 1)) & 1, np.any([part == number for part in truth], axis=0))
    assert ((labels & (labels - 1)) > 0).any()  # more than one bit: they do overlap


@pytest.mark.parametrize("ppv", ["noppv", "ppv5"])
def test_dcmqi_sparse_labelmap(real_data: Find, ppv: str) -> None:
    """A slice without a frame is empty, whatever the padding value of the file is."""
    root = real_data("dcmqi")
    scan = only_scan(root, f"dicom(masks='sparse-labelmap-{ppv}.dcm')")
    truth = nrrd(root / SEGMENTATIONS / f"sparse_labelmap_{ppv}_seg.nrrd")
    assert np.array_equal(scan.labels, truth == 1)
    assert [int(n) for n in scan.labels.sum(axis=(1, 2))] == [315, 0, 315]


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_dcmqi_frames_that_are_not_byte_aligned(real_data: Find, size: str) -> None:
    root = real_data("dcmqi")
    scan = only_scan(root / SEGMENTATIONS / size, "dicom")
    assert np.array_equal(scan.labels, nrrd(root / SEGMENTATIONS / size / "nrrd/label.nrrd"))


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_dcmqi_multi_frame_ct_is_its_single_frames(real_data: Find, size: str, tmp_path: Path) -> None:
    root = real_data("dcmqi") / SEGMENTATIONS / size
    many = pydicom.dcmread(root / "multiframe/mf.dcm")
    single = only_scan(root, "dicom")
    masks = nibabel.Nifti1Image(single.labels, single.affine)
    (tmp_path / "mf.dcm").write_bytes((root / "multiframe/mf.dcm").read_bytes())
    nibabel.save(masks, tmp_path / "m.nii.gz")
    scan = only_scan(tmp_path, "dicom(masks='m.nii.gz')")
    assert [path for path, _ in scan.frames] == ["mf.dcm"] * 3
    assert int(many.NumberOfFrames) == 3
    assert np.array_equal(scan.stored, single.stored)
    assert np.array_equal(native(scan), native(single))
    assert np.allclose(scan.affine, single.affine)  # type: ignore[arg-type]
    assert np.array_equal(scan.labels, single.labels)


def test_totalsegmentator_in_jpeg_2000_with_nifti_labels(real_data: Find) -> None:
    root = real_data("totalsegmentator")
    first = pydicom.dcmread(next((root / "example_ct_dicom").iterdir()), stop_before_pixels=True)
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
    scan = only_scan(root, "dicom(masks='example_seg_dicom.nii.gz', labels='liver=5')")
    assert scan.spacing_mm[0] == pytest.approx(2.0)
    assert first.SliceThickness == 3
    hu = native(scan)[scan.labels > 0]
    assert (round(hu.mean()), round(hu.std())) == (89, 22)


def test_highdicom_binary(real_data: Find) -> None:
    scan = only_scan(real_data("highdicom"), "dicom(masks='seg_image_ct_binary_single_frame.dcm')")
    assert int(scan.labels.sum()) == 1_832


def test_highdicom_files_of_absent_series_are_named(real_data: Find) -> None:
    source = open_source("dicom", real_data("highdicom"))
    assert len(source.scans) == 1
    assert sum("a SEG of a series that is not in SOURCE" in note for note in source.notes) == 11


@pytest.mark.parametrize("name", ["binary", "binary_fractional", "true_fractional"])
def test_highdicom_fractional_on_the_series_that_it_refers_to(real_data: Find, name: str) -> None:
    """The series is not there: its grid is that of the frames, and the pixels are compared with those of the file."""
    path = real_data("highdicom") / f"data/test_files/seg_image_ct_{name}.dcm"
    seg = pydicom.dcmread(path)
    places = np.array(
        [frame.PlanePositionSequence[0].ImagePositionPatient for frame in seg.PerFrameFunctionalGroupsSequence], float
    )
    spacing = [float(mm) for mm in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
    steps = np.stack((places[1] - places[0], (0, spacing[0], 0), (spacing[1], 0, 0)), axis=1)
    grid = Grid((len(places), seg.Rows, seg.Columns), places[0], steps)
    threshold = 0.5
    values = seg.pixel_array / (seg.MaximumFractionalValue if "fractional" in name else 1)
    mask = read_seg(path, grid, [1], threshold)[1]
    assert np.array_equal(mask, values >= threshold)
    assert mask.any()


def test_uids_of_real_files_are_in_no_name(real_data: Find) -> None:
    source = open_source("dicom", real_data("ibsi_ct_phantom"))
    assert len(source.scans[0].id) < 24
    assert uid("x") not in source.scans[0].id


def three_patients(root: Path, real_data: Find) -> None:
    """Four of the slices of ibsi (12 bits in 16), and CT of two others with SEG, signed and unsigned."""
    ibsi, dcmqi = real_data("ibsi_ct_phantom") / "dicom", real_data("dcmqi") / SEGMENTATIONS
    highdicom = real_data("highdicom") / "data/test_files"
    several = {
        "a": [*sorted((ibsi / "image").iterdir())[28:32], *(ibsi / "mask").iterdir()],
        "b": [*(dcmqi / CT3).iterdir(), dcmqi / "liver.dcm"],
        "c": [highdicom / "ct_image.dcm", highdicom / "seg_image_ct_binary_single_frame.dcm"],
    }
    for name, files in several.items():
        (root / name).mkdir(parents=True)
        for path in files:
            (root / name / path.name).write_bytes(path.read_bytes())


def test_real_series_attacked_written_and_read_by_pydicom_alone(real_data: Find, tmp_path: Path) -> None:
    three_patients(tmp_path / "scans", real_data)
    run = attacked(tmp_path, tmp_path / "scans", labels="organ=GTV-1|Liver|first segment")
    pairs = copies(run, tmp_path / "scans")
    assert len(pairs) == 4 + 3 + 1
    for pair in pairs:
        before, after = map(pydicom.dcmread, pair)
        change = np.abs(after.pixel_array.astype(int) - before.pixel_array)
        assert change.max() == EPS
        for word in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "Rows",
            "Columns",
            "RescaleSlope",
            "RescaleIntercept",
            "BitsStored",
            "PixelRepresentation",
        ):
            assert after[word].value == before[word].value
        for word in ("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID", "PatientName"):
            assert after[word].value != before[word].value
        assert after.pixel_array.max() < 2**after.BitsStored
    verified = json.loads(medattack("verify", run, "--json").stdout)
    assert [one["verified"] for one in verified] == [True]
