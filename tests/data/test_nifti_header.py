"""Every field of a NIfTI header: used, refused, noted, or without influence; and the plane of slices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers.command import medattack
from helpers.scans import acdc_paths, write_acdc, write_pair

from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.data.formats.scan import Scan
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError


def write(root: Path, *, cases: int = 3, spacing: tuple[float, ...] = (1, 1.5, 4), shape: Any = (8, 10, 5)) -> Path:
    for n in range(cases):
        image = np.random.default_rng(n).integers(0, 1000, shape).astype(np.int16)
        mask = (image > 500).astype(np.uint8)
        paths = root / "imagesTr" / f"p_{n}.nii", root / "labelsTr" / f"p_{n}.nii"
        write_pair(*paths, image=image, mask=mask, affine=np.diag((*spacing, 1.0)))
        for path in paths:
            edit(path, xyzt_units=2)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))
    return root


def edit(path: Path, **fields: Any) -> None:
    """Changes fields of the header, and nothing else; `pixdim_3` is the entry 3 of pixdim."""
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        name, _, index = field.rpartition("_") if field[-1].isdigit() and field[-2] == "_" else (field, "", "")
        if index:
            header[name][int(index)] = value
        else:
            header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(bytes(content))


def both(root: Path, **fields: Any) -> Source:
    """The source with these fields in every file."""
    for path in root.rglob("*.nii"):
        edit(path, **fields)
    return open_source("decathlon", root)


def same(scan: Scan, other: Scan) -> bool:
    values = zip(scan.native(), other.native(), strict=True)
    return (
        all(np.array_equal(a, b) for a, b in values)
        and np.array_equal(scan.labels, other.labels)
        and np.allclose(scan.spacing_mm, other.spacing_mm)
        and np.allclose(scan.affine, other.affine)  # type: ignore[arg-type]
    )


IGNORED: dict[str, Any] = {
    "data_type": b"dsr",
    "db_name": b"SMITH",
    "extents": 16384,
    "session_error": 3,
    "regular": b"r",
    "dim_info": 57,
    "dim_4": 9,  # beyond dim[0]
    "intent_p1": 3.0,
    "intent_p2": 3.0,
    "intent_p3": 3.0,
    "intent_code": 3,
    "intent_name": b"T-test",
    "slice_start": 1,
    "slice_end": 3,
    "slice_code": 3,
    "slice_duration": 2.5,
    "toffset": 7.0,
    "pixdim_4": 2.0,
    "cal_max": 300.0,
    "cal_min": 100.0,
    "glmax": 300,
    "glmin": 100,
    "descrip": b"FSL5.0",
    "aux_file": b"other",
    "quatern_b": 0.5,  # qform_code is 0
    "quatern_c": 0.5,
    "quatern_d": 0.5,
    "qoffset_x": 50.0,
    "qoffset_y": 50.0,
    "qoffset_z": 50.0,
    "pixdim_0": -1.0,
}
NOTED: dict[str, tuple[dict[str, Any], str]] = {
    "xyzt_units": ({"xyzt_units": 0}, "no unit of length, mm are assumed"),
    "sform_code": ({"sform_code": 0}, "no orientation"),
    "qform_code": ({"qform_code": 1, "qoffset_x": 30.0}, "a sform, which is taken, and a qform elsewhere"),
    "pixdim": ({"pixdim_1": 4.0, "pixdim_3": 1.0}, "a spacing of 1 x 1.5 x 4 by the affine, which is taken, and of 4"),
    "scl_slope": ({"scl_slope": np.nan}, "a scl_slope that is no number"),
    "scl_inter": ({"scl_slope": 0, "scl_inter": 7}, "a scl_inter without a scl_slope"),
    "intent_code": ({"intent_code": 1002}, "the intent of a label map"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": b"ni1"}, "expected the magic n\\+1"),
    "bitpix": ({"bitpix": 64}, "bitpix: expected"),
    "datatype": ({"datatype": 128, "bitpix": 24}, "datatype: expected numbers of up to 64 bits, got colours"),
    "vox_offset": ({"vox_offset": 0}, "vox_offset: expected 352"),
    "intent_code": ({"intent_code": 1006}, "intent_code: expected intensities"),
    "xyzt_units": ({"xyzt_units": 5}, "xyzt_units: expected metres"),
    "pixdim_0": ({"sform_code": 0, "qform_code": 1, "pixdim_0": 3.0}, "pixdim\\[0\\]: expected -1 or 1"),
    "pixdim": (
        {"pixdim_1": np.nan, "srow_x": (1, 0, 0, 0), "srow_y": (0, 1, 0, 0), "srow_z": (0, 0, 1, 0)},
        "positive",
    ),
    "srow_x": ({"srow_x": (np.nan, 0, 0, 0)}, "expected an affine"),
    "srow_y": ({"srow_y": (0, 0, 0, 0)}, "expected an affine"),
    "srow_z": ({"srow_z": (1, 0, 0, 0), "srow_y": (1, 0, 0, 0)}, "expected an affine"),
    "scl_inter": ({"scl_slope": 2, "scl_inter": np.inf}, "expected a whole NIfTI file"),
    "dim": ({"dim_0": 9}, "expected"),
    "dim_1": ({"dim_1": -8}, "dim: expected lengths"),
    "sizeof_hdr": ({"sizeof_hdr": 340}, "sizeof_hdr: expected 348"),
    "quatern_b": ({"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}, "expected"),
}


def test_no_field_is_passed_over() -> None:
    used = {"dim", "srow_x", "srow_y", "srow_z", "scl_slope", "scl_inter", "sform_code", "qform_code"}
    tested = {*IGNORED, *NOTED, *REFUSED, *used}
    assert {*nibabel.Nifti1Header.template_dtype.names} <= tested


@pytest.mark.parametrize("field", IGNORED)
def test_fields_without_influence(tmp_path: Path, field: str) -> None:
    before = open_source("decathlon", write(tmp_path)).scans[0].read()
    after = both(tmp_path, **{field: IGNORED[field]})
    assert same(before, after.scans[0].read())
    assert not after.notes


@pytest.mark.parametrize("field", NOTED)
def test_fields_that_are_noted(tmp_path: Path, field: str) -> None:
    fields, note = NOTED[field]
    source = both(write(tmp_path), **fields)
    assert any(text.startswith(f"3 of 3 scans have {note}") for text in source.notes), source.notes
    source.scans[0].read()


@pytest.mark.parametrize("field", REFUSED)
@pytest.mark.filterwarnings("ignore")  # nibabel warns before it fails
def test_fields_that_are_refused(tmp_path: Path, field: str) -> None:
    fields, sentence = REFUSED[field]
    with pytest.raises(InputError, match=sentence) as error:
        both(write(tmp_path), **fields).scans[0].read()
    assert ".nii" in str(error.value)


def test_a_scale_changes_values_also_those_of_a_mask(tmp_path: Path) -> None:
    root = write(tmp_path)
    before = open_source("decathlon", root).scans[0].read()
    edit(root / "imagesTr" / "p_0.nii", scl_slope=-2, scl_inter=7)
    after = open_source("decathlon", root).scans[0].read()
    assert np.array_equal(next(after.native()), next(before.native()) * -2 + 7)
    edit(root / "labelsTr" / "p_0.nii", scl_slope=2)
    with pytest.raises(InputError, match="expected the labels 0, 1, got 2"):
        open_source("decathlon", root).scans[0].read()


@pytest.mark.parametrize(("dtype", "offset"), [(np.int64, 2**60), (np.int64, -(2**60)), (np.uint64, 2**63)])
def test_whole_numbers_that_no_float_tells_apart_are_refused(tmp_path: Path, dtype: Any, offset: int) -> None:
    """Floats of 64 bits are 256 apart at 2**60: an image of 0 to 200 above it would have two values."""
    path = tmp_path / "image.nii.gz"
    for base in (offset // 2**20, offset):
        values = np.arange(60).reshape(3, 4, 5).astype(dtype) + dtype(base)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=dtype), path)
        if base != offset:
            assert np.array_equal(read_nifti(path).values, np.arange(60).reshape(3, 4, 5) + float(base))
    with pytest.raises(InputError, match=r"expected whole numbers up to 9,007,199,254,740,992.*; store smaller"):
        read_nifti(path)


def test_whole_numbers_that_resampling_would_round_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "scans")
    prepare = ("prepare", root, "--format", "decathlon", "--test", "1", "--size", "4,6", "--home", tmp_path / "home")
    for n in range(3):
        image = np.arange(400).reshape(8, 10, 5).astype(np.uint32) + 2**31
        write_pair(root / "imagesTr" / f"p_{n}.nii", tmp_path / "mask.nii", image=image, affine=np.diag((1, 1.5, 4, 1)))
    result = medattack(*prepare, code=2)
    assert "--size: expected stored values up to 16,777,216" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("code", "factor"), [(1, 1000), (2, 1), (3, 0.001), (8 + 2, 1)])
def test_lengths_are_in_the_unit_of_the_header(tmp_path: Path, code: int, factor: float) -> None:
    scan = both(write(tmp_path), xyzt_units=code).scans[0].read()
    assert scan.spacing_mm == pytest.approx((4 * factor, 1.5 * factor, factor))
    assert scan.affine is not None
    assert np.allclose(scan.affine[:3, :3], np.diag((1, 1.5, 4)) * factor)


def test_bytes_may_be_in_either_order(tmp_path: Path) -> None:
    root = write(tmp_path)
    before = open_source("decathlon", root).scans[0].read()
    for path in root.rglob("*.nii"):
        file: Any = nibabel.load(path)
        header = file.header.as_byteswapped()
        data = np.asarray(file.dataobj)
        path.write_bytes(nibabel.Nifti1Image(data, file.affine, header).to_bytes())
        assert path.read_bytes()[:4] != b"\x5c\x01\x00\x00"
    assert same(before, open_source("decathlon", root).scans[0].read())


def test_a_header_extension_has_no_influence(tmp_path: Path) -> None:
    root = write(tmp_path)
    before = open_source("decathlon", root).scans[0].read()
    for path in root.rglob("*.nii"):
        file: Any = nibabel.load(path)
        file.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"SMITH^JOHN"))
        path.write_bytes(nibabel.Nifti1Image(np.asarray(file.dataobj), file.affine, file.header).to_bytes())
    assert same(before, open_source("decathlon", root).scans[0].read())


def test_the_scale_of_an_affine_wins_over_pixdim_and_an_affine_without_one_does_not(tmp_path: Path) -> None:
    """As in images of nifti_clib#127; ACDC's affines have unit columns, and pixdim has the spacing."""
    permuted = both(write(tmp_path / "permuted", spacing=(4, 1, 1)), pixdim_1=1.0, pixdim_3=4.0)
    assert permuted.scans[0].read().spacing_mm == pytest.approx((4, 1, 1))
    unit = both(write(tmp_path / "unit", spacing=(1, 1, 1)), pixdim_1=2.0, pixdim_2=2.0, pixdim_3=8.0)
    assert unit.scans[0].read().spacing_mm == pytest.approx((8, 2, 2))
    assert "an affine without a scale, the spacing is pixdim's" in unit.notes[0]


def test_labels_near_to_whole_numbers_are_these(tmp_path: Path) -> None:
    """uint8 0 and 51 with scl_slope 1/51, as a tool writes them that rescales: 1.00000004."""
    root = write(tmp_path / "in")
    before = open_source("decathlon", root).scans[0].read()
    for path in (root / "labelsTr").iterdir():
        content = bytearray(path.read_bytes())
        content[352:] = bytes(51 * value for value in content[352:])
        path.write_bytes(bytes(content))
        edit(path, scl_slope=1 / 51)
    assert same(before, open_source("decathlon", root).scans[0].read())
    medattack("prepare", root, "--format", "decathlon", "--out", tmp_path / "out")
    assert any("labels near to whole numbers" in note for note in open_prepared(tmp_path / "out").notes)
    (root / "dataset.json").unlink()
    assert open_source("decathlon", root).task.classes == ("background", "label_1")
    for path in (root / "labelsTr").iterdir():
        edit(path, scl_slope=1 / 50)
    with pytest.raises(InputError, match=r"expected labels 1, 2.*got 1\.02"):
        open_source("decathlon", root)


def planes(*spacings: tuple[float, ...]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for n, mm in enumerate(spacings * 3):
            shape = tuple(round(30 / length) for length in mm)
            mask = np.zeros(shape, np.uint8)
            mask[tuple(slice(s // 4, max(s // 2, 1)) for s in shape)] = 1
            paths = root / "imagesTr" / f"p_{n}.nii", root / "labelsTr" / f"p_{n}.nii"
            write_pair(*paths, image=mask.astype(np.int16) * 100, mask=mask, affine=np.diag((*mm, 1.0)))
        return root

    return make


@pytest.mark.parametrize(
    ("make", "plane", "noted"),
    [
        (planes((1, 1, 5), (5, 1, 1)), "axial", True),
        (planes((5, 1, 1), (5, 1, 1), (1, 1, 5)), "sagittal", True),
        (planes((1, 1, 1.2), (1, 1.3, 1.2)), "axial", False),
        (planes((1, 3, 1)), "coronal", False),
        (planes((1, 1, 1)), "axial", False),
    ],
)
def test_all_scans_have_one_plane(tmp_path: Path, make: Callable[[Path], Path], plane: str, noted: bool) -> None:
    source = open_source("decathlon", make(tmp_path))
    assert source.plane == plane
    through = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    assert {file.read().lattice.axes[0] for file in source.scans} == {through}  # type: ignore[union-attr]
    assert any("seem to have been acquired" in note for note in source.notes) is noted


@pytest.mark.parametrize(
    ("plane", "first"), [("axial", {2}), ("coronal", {1}), ("sagittal", {0}), ("acquired", {0, 2})]
)
@pytest.mark.parametrize("form", ["decathlon", "acdc"])
def test_a_plane_can_be_chosen(tmp_path: Path, form: str, plane: str, first: set[int]) -> None:
    if form == "acdc":
        for n, mm in enumerate([(1, 1, 5), (5, 1, 1)]):
            write_pair(*acdc_paths(tmp_path, n), affine=np.diag((*mm, 1.0)))
    else:
        planes((1, 1, 5), (5, 1, 1))(tmp_path)
    source = open_source(form, tmp_path, {"plane": plane})
    assert {file.read().lattice.axes[0] for file in source.scans} == first  # type: ignore[union-attr]
    with pytest.raises(
        InputError, match="expected axial, coronal, sagittal or acquired, got 'axail'; did you mean axial"
    ):
        open_source(form, tmp_path, {"plane": "axail"})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_volume_is_one_slice(tmp_path: Path, axis: int) -> None:
    truth = np.zeros((48, 64), np.uint8)
    truth[10:30, 20:40] = 1
    mask = np.expand_dims(truth, axis)
    for n in range(3):
        paths = tmp_path / "imagesTr" / f"p_{n}.nii", tmp_path / "labelsTr" / f"p_{n}.nii"
        write_pair(*paths, image=mask.astype(np.int16) * 100, mask=mask, affine=np.eye(4))
    scan = open_source("decathlon", tmp_path).scans[0].read()
    assert len(scan.labels) == 1
    assert sorted(scan.labels.shape[1:]) == [48, 64]


def test_few_slices_of_equal_spacing_are_slices(tmp_path: Path) -> None:
    source = open_source("decathlon", write(tmp_path, spacing=(1, 1, 1), shape=(3, 40, 40)))
    assert source.plane == "sagittal"


def test_the_summary_says_the_plane_and_a_prepared_set_keeps_it(tmp_path: Path) -> None:
    root, out = planes((1, 1, 5))(tmp_path / "in"), tmp_path / "out"
    said = medattack("prepare", root, "--format", "decathlon", "--plane", "coronal", "--out", out)
    assert "slices      coronal" in said.stdout
    assert "patients    told apart by their cases" in said.stdout
    assert open_prepared(out).summary["plane"] == "coronal"
    refused = medattack("prepare", root, "--format", "decathlon", "--out", out, code=2).stderr
    assert "plane: there coronal, here axial" in " ".join(refused.split())


def test_a_data_set_that_holds_slices_has_no_plane_to_choose(tmp_path: Path) -> None:
    said = medattack("prepare", write_acdc(tmp_path / "a"), "--format", "folder", "--plane", "axial", code=2).stderr
    assert "--plane: expected an option of folder" in " ".join(said.split())


def test_read_nifti_keeps_what_the_header_says(tmp_path: Path) -> None:
    root = write(tmp_path)
    volume = read_nifti(root / "imagesTr" / "p_0.nii")
    assert volume.header.notes == ()
    assert volume.header.shape == (8, 10, 5)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"scl_slope": 3e38}, "values of 3e+38 x stored +0"),
        ({"scl_slope": 1.0, "scl_inter": -1e14}, "values of 1 x stored -1e+14"),
        ({"pixdim_1": 1e-6, "srow_x": (1e-6, 0, 0, 0)}, "a spacing of 4 x 1.5 x 1e-06 mm"),
        ({"pixdim_1": 1e6, "srow_x": (1e6, 0, 0, 0)}, "a spacing of 1.5 x 4 x 1e+06 mm"),
    ],
)
def test_lengths_and_scales_that_no_scanner_has_are_noted_in_the_prepared_set(
    tmp_path: Path, fields: dict[str, Any], note: str
) -> None:
    source = tmp_path / "source"
    write(source)
    for path in source.rglob("*.nii"):
        lengths = {name: value for name, value in fields.items() if not name.startswith("scl")}
        edit(path, **(fields if path.parent.name == "imagesTr" else lengths))
    result = medattack("prepare", source, "--format", "decathlon", "--out", tmp_path / "data", "--plane", "axial")
    sentence = f"note: 3 of 3 scans have {note.replace('1.5 x 4', '4 x 1.5')}, which no scanner has"
    assert sentence in " ".join(result.stderr.split())


def test_files_in_several_units_of_length_are_called_so(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path / "labelsTr" / "p_0.nii", xyzt_units=1)
    sentence = r"xyzt_units: expected image and mask in one unit of length, got millimetres in .* and metres in .*p_0"
    with pytest.raises(InputError, match=sentence):
        open_source("decathlon", tmp_path).scans[0].read()
