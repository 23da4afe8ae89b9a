"""DICOM that cannot be used: one sentence that names the file or series, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicoms import box, square, uid, values, write_hospital, write_rtstruct, write_seg, write_series
from helpers.scans import write_acdc
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian, JPEGLosslessSV1
from typer.testing import CliRunner

from medseg_attack.cli import app
from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.dicom import decoders as dicom_decoders
from medseg_attack.data.formats.dicom.decoders import check_decodable, matrix
from medseg_attack.data.formats.dicom.reading import read_whole
from medseg_attack.errors import InputError


def run(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def refused(root: Path, *words: object, format: str = "dicom") -> str:
    out = root.parent / "out"
    code, _, said = run("prepare", root, "--format", format, "--out", out, *words)
    assert code == 2, said
    assert not out.exists()
    errors = said[said.index("error:") :]
    assert "Traceback" not in said
    assert "defect" not in said
    assert ";" in errors  # and what to do
    return errors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_hospital(tmp_path / "scans", patients=3)


def first(root: Path, place: str = "pat1/CT") -> Path:
    """The file of the middle slice."""
    return root / place / "IM002"


def edit(path: Path, change: Callable[[pydicom.Dataset], Any]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def test_a_missing_slice(tmp_path: Path, root: Path) -> None:
    images = write_series(root / "pat4", values(5), patient="P4")
    write_seg(root / "pat4" / "seg", images, box(5, 3, 7, 2, 6), ["Liver"])
    images[2].unlink()
    said = refused(root)
    assert uid("P4", "ct") in said
    assert "slices 2.5 mm apart, got 5 mm between IM004 and IM002: 1 slice missing" in said


def test_slices_at_uneven_distances(root: Path) -> None:
    edit(first(root), lambda image: setattr(image, "ImagePositionPatient", [-20, -30, -46.7]))
    assert "slices at equal distances on one line, got distances from 1.7 to 3.3 mm" in refused(root)


def test_slices_beside_one_another(root: Path) -> None:
    edit(first(root), lambda image: setattr(image, "ImagePositionPatient", [-22, -30, -47.5]))
    assert "one slice 2 mm from its place" in refused(root)


def test_mixed_orientations(root: Path) -> None:
    edit(first(root), lambda image: setattr(image, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))
    said = refused(root)
    assert "slices of one orientation" in said
    assert "localizer" in said


def test_two_images_in_one_place(root: Path) -> None:
    edit(first(root), lambda image: setattr(image, "ImagePositionPatient", [-20, -30, -50]))
    said = refused(root)
    assert "one image at each position, got IM002 (frame 0) and IM003 (frame 0) at (" in said
    assert "; take copies away, or export" in said


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_geometry_is_never_made_up(root: Path, name: str) -> None:
    edit(first(root), lambda image: delattr(image, name))
    assert f"expected {name} in every slice, got None" in refused(root)


def test_slices_stored_in_different_ways(root: Path) -> None:
    def shorter(image: pydicom.Dataset) -> None:
        image.BitsStored, image.HighBit = 11, 10

    edit(first(root), shorter)
    assert "slices stored in one way, got bits 11, 12" in refused(root)


def test_a_seg_of_another_series(tmp_path: Path) -> None:
    images = write_series(tmp_path / "elsewhere", patient="P1", series="other")
    write_series(tmp_path / "scans", patient="P1")
    write_seg(tmp_path / "scans" / "seg.dcm", images, box(4, 3, 7, 2, 6), ["Liver"])
    said = refused(tmp_path / "scans")
    assert f"got {tmp_path / 'scans' / 'seg.dcm'} of the series {uid('P1', 'other')}" in said


def test_a_seg_on_another_grid(root: Path) -> None:
    """It names the series, but its frames lie between the slices."""
    edit(
        root / "pat1/labels/seg.dcm",
        lambda seg: [
            setattr(frame.PlanePositionSequence[0], "ImagePositionPatient", [-20, -30, -48.7])
            for frame in seg.PerFrameFunctionalGroupsSequence
        ],
    )
    said = refused(root)
    assert "frames on the slices of the series" in said
    assert "seg.dcm" in said


def test_an_rtstruct_without_a_region_of_that_name(root: Path) -> None:
    said = refused(root, "--labels", "liver=Liver*,heart=Heart")
    assert "a label Heart for heart, got Liver in" in said
    write_rtstruct(root / "pat3" / "rt" / "rs.dcm", {"Lung": [square(3, 2, 4, -50)]}, patient="P3")
    said = refused(root, "--labels", "liver=Liver", "--missing", "refuse")
    assert "expected a label of liver in pat3/CT, got Lung" in said
    assert (
        "pat3/CT is left out: it has none of the labels"
        in run(
            "prepare", root, "--format", "dicom", "--labels", "liver=Liver", "--out", root.parent / "out", "--test", 1
        )[2]
    )


def test_an_rtstruct_with_all_contours_off_the_series(root: Path) -> None:
    write_rtstruct(root / "pat3" / "rt" / "rs.dcm", {"Liver": [square(3, 2, 4, 99)]}, patient="P3")
    assert "expected contours of 'Liver' on the slices" in refused(root)


def test_an_undecodable_transfer_syntax(root: Path) -> None:
    def film(image: pydicom.Dataset) -> None:
        image.file_meta.TransferSyntaxUID = MPEG2MPML
        image.PixelData = encapsulate([b"\0\0"])

    edit(first(root), film)
    said = refused(root)
    assert f"got MPEG2 Main Profile / Main Level ({MPEG2MPML})" in said
    assert "IM002" in said
    assert "export the series uncompressed" in said


def test_a_missing_decoder_gives_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_decoders, "_decoded_by", lambda syntax: "")
    sentence = r"JPEG lossless, first order \(1.2.840.10008.1.2.4.70\) in x; run: pip install python-gdcm$"
    with pytest.raises(InputError, match=sentence):
        check_decodable(JPEGLosslessSV1, Path("x"))
    assert matrix()["JPEG-LS lossless"] == "missing: pip install pyjpegls"
    assert matrix()["JPEG 2000"] == "missing: pip install pylibjpeg pylibjpeg-openjpeg"


def test_what_to_install_is_what_decodes() -> None:
    """In a process without them, pydicom decodes none of the syntaxes that the lines are for, and all of the others."""
    code = (
        "import sys; [sys.modules.__setitem__(name, None) for name in "
        "('gdcm', 'jpeg_ls', 'pylibjpeg', 'openjpeg', 'libjpeg', 'PIL')];"
        "from medseg_attack.data.formats.dicom.decoders import matrix; import json; print(json.dumps(matrix()))"
    )
    decoder_of = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    missing = {name for name, by in decoder_of.items() if by.startswith("missing: pip install")}
    assert missing == {name for name in decoder_of if "JPEG" in name or "HTJ2K" in name}
    assert {decoder_of[name] for name in decoder_of.keys() - missing} == {"pydicom"}


def test_doctor_prints_the_decoders() -> None:
    code, shown, _ = run("doctor", "--json")
    assert code == 0
    decoder_of = json.loads(shown)["DICOM"]
    assert decoder_of["RLE"] == "pydicom"
    assert "pyjpegls" in decoder_of["JPEG-LS lossless"]
    assert "pylibjpeg" in decoder_of["JPEG 2000"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("place", ["pat1/CT/IM002", "pat1/labels/seg.dcm", "pat3/rt/rs.dcm"])
def test_a_truncated_file(root: Path, place: str, share: float) -> None:
    path = root / place
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    said = refused(root)
    assert path.name in said
    assert "copy it again" in said


def test_a_truncated_compressed_file(tmp_path: Path, root: Path) -> None:
    images = write_series(root / "pat4", np.full((3, 40, 36), 7), patient="P4", syntax="1.2.840.10008.1.2.5")
    contours = [square(3, 2, 4, -50)]
    write_rtstruct(root / "pat4" / "rs", {"Liver": contours}, patient="P4")
    images[0].write_bytes(images[0].read_bytes()[:-30])
    said = refused(root)
    assert images[0].name in said


def test_a_series_that_is_not_there(root: Path) -> None:
    said = refused(root, "--series", "1.2.3")
    assert "expected the series 1.2.3" in said
    assert uid("P1", "ct") in said


def test_labels_of_one_name_in_two_files(root: Path) -> None:
    images = [root / "pat1" / "CT" / f"IM00{n}" for n in (3, 2, 1)]
    write_seg(root / "pat1" / "labels" / "reader2.dcm", images, box(3, 1, 3, 1, 3), ["Liver"])
    said = refused(root)
    assert f"expected one file with 'Liver' for the series {uid('P1', 'ct')} in pat1/CT" in said
    code, *_ = run("prepare", root, "--format", "dicom(masks='r*.dcm')", "--out", root.parent / "other")
    assert code == 2  # pat2 has none of that name, and one patient is not enough
    assert "labels='" not in said


def test_other_labels_from_series_to_series(root: Path) -> None:
    write_rtstruct(root / "pat3" / "rt" / "rs.dcm", {"Lung": [square(3, 2, 4, -50)]}, patient="P3")
    said = refused(root)
    assert "the same labels for all series, got" in said
    assert "Liver in" in said


def test_a_label_that_a_series_has_not(root: Path) -> None:
    said = refused(root, "--labels", "spleen=Spleen")
    assert "or name the other series, one by one, with --series" in said


def test_a_file_that_is_there_no_more(root: Path) -> None:
    scan = open_source("dicom", root).scans[0]
    scan.sources[0].rename(root / "away")
    with pytest.raises(InputError, match=r"expected a DICOM file at .*, got no file; put it back"):
        scan.read()


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.dcm").write_text("no DICOM")
    assert "expected DICOM series in" in refused(tmp_path / "scans")
    write_series(tmp_path / "scans" / "ct")
    assert "expected a SEG or RTSTRUCT with the series" in refused(tmp_path / "scans")


def test_options_of_dicom_are_refused_elsewhere(tmp_path: Path) -> None:
    said = refused(write_acdc(tmp_path / "acdc"), "--labels", "a=b", format="acdc")
    assert "--labels: expected an option of acdc, got that it has no such option" in said
    said = refused(tmp_path / "acdc", "--labels", "a=b", format="dicom(labels='c=d')")
    assert "it is in --format, too" in said


@pytest.mark.parametrize("spec", ["dicom(threshold=0.0)", "dicom(patient='(')", "dicom(labels='liver=')"])
def test_options_out_of_range(root: Path, spec: str) -> None:
    assert "expected" in refused(root, format=spec)


def test_a_file_that_ends_within_an_element_that_nobody_asks_for(tmp_path: Path) -> None:
    path = write_series(tmp_path, values(1))[0]
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"Canary") + 3])
    with pytest.raises(OSError, match="too early"):
        read_whole(path, ("SOPClassUID", "Rows"))


def test_a_deflated_file_of_more_than_is_allowed(root: Path) -> None:
    """40 MB of zeros in 40 kB: the size is known before memory is taken."""

    def bomb(image: pydicom.Dataset) -> None:
        image.Rows = image.Columns = 4500
        image.PixelData = bytes(2 * 4500**2)
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    edit(first(root), bomb)
    assert first(root).stat().st_size < 60_000
    assert "takes at most 0.03 GB of memory, got a deflated file" in refused(root, "--max-gb", "0.03")


@pytest.mark.parametrize("place", ["pat1/CT/IM002", "pat1/labels/seg.dcm"])
def test_frames_that_are_claimed_are_not_waited_for(root: Path, place: str) -> None:
    """2,147,483,647 frames, which are as many as the format can count."""
    edit(root / place, lambda image: setattr(image, "NumberOfFrames", 2**31 - 1))
    assert "frame" in refused(root)


def test_an_image_of_more_than_is_allowed(root: Path) -> None:
    for path in (root / "pat1" / "CT").iterdir():
        edit(path, lambda image: [setattr(image, name, 30_000) for name in ("Rows", "Columns")])
    assert "takes at most 6 GB of memory, got 3 x 30,000 x 30,000 values" in refused(root)
