"""Headers of perturbed DICOM copies: what they have of their source, and sources whose headers are odd."""

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.command import medattack
from helpers.dicoms import attacked, square, uid, values, write_enhanced, write_hospital, write_rtstruct, write_series
from highdicom.seg import segread
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medseg_attack.data.formats.dicom.writing import copy_bytes, require_copy, seg_bytes

NAME, UID = "DOEJANE", "1.2.840.113619.77"
TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
NUMERIC = ("DS", "IS")
NEEDED = {"SOPClassUID", "Modality", "PhotometricInterpretation"}


def planted(path: Path) -> None:
    """A name in every element that can hold text, in numbers that are written as text, in sequences and in private."""
    dataset = pydicom.dcmread(path)
    item = Dataset()
    item.ScanningSequence = item.ScanOptions = item.LUTExplanation = item.StackID = NAME
    item.add_new(0x00091010, "LO", NAME)
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag < 0x00080000 or tag >= 0x7FE00000 or keyword in NEEDED:
            continue
        if vr in TEXT:
            dataset.add_new(tag, vr, NAME)
        elif vr == "UI":
            dataset.add_new(tag, vr, UID)
        elif vr == "SQ":
            dataset.add_new(tag, vr, Items([item]))
        elif vr in NUMERIC and keyword not in dataset:
            dataset.add(DataElement(tag, "LO", NAME))
    dataset.add_new(0x00091010, "LO", NAME)
    dataset.add_new(0x00290010, "UN", NAME.encode())
    dataset.ImageType = ["ORIGINAL", "PRIMARY", NAME]
    for keyword, vr, number in (
        ("ReconstructionDiameter", "DS", 350.5),
        ("ExposureTime", "IS", 700),
        ("SAR", "FD", 0.1),
    ):
        dataset.add_new(keyword, vr, number)
    dataset.save_as(path)


def copied(path: Path, *, stored: np.ndarray | None = None, keep_headers: bool = False, key: str = "k") -> Dataset:
    stored = values(1).astype(np.uint16) if stored is None else stored
    content = copy_bytes(path, stored, patient="p1", attack="a", key=key, keep_headers=keep_headers)
    return pydicom.dcmread(BytesIO(content))


@pytest.mark.filterwarnings("ignore")
def test_a_name_in_any_element_of_the_source_is_in_no_copy(tmp_path: Path) -> None:
    path = write_series(tmp_path, values(1))[0]
    planted(path)
    assert path.read_bytes().count(NAME.encode()) > 2000
    content = copy_bytes(path, values(1).astype(np.uint16), patient="p1", attack="a", key="k", keep_headers=False)
    assert NAME.encode() not in content
    assert UID.encode() not in content
    copy = pydicom.dcmread(BytesIO(content))
    assert list(copy.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert np.array_equal(copy.pixel_array, values(1)[0])


@pytest.mark.filterwarnings("ignore")
def test_a_name_in_the_groups_of_frames_is_in_no_copy(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "mr.dcm", values(2), [(1.0, 0.0)] * 2, order=(1, 0))
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].StackID = NAME
        frame.FrameContentSequence[0].FrameComments = NAME
        frame.MRImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", NAME, "NONE"]
        frame.MRImageFrameTypeSequence[0].PixelPresentation = NAME
        frame.PixelValueTransformationSequence[0].RescaleType = NAME
        frame.PlanePositionSequence[0].add_new(0x00291010, "LO", NAME)
    dataset.save_as(path)
    content = copy_bytes(path, values(2).astype(np.uint16), patient="p", attack="a", key="k", keep_headers=False)
    assert NAME.encode() not in content
    frame = pydicom.dcmread(BytesIO(content)).PerFrameFunctionalGroupsSequence[0]
    assert frame.FrameContentSequence[0].StackID == "1"
    assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == [-20, -30, -47.5]


def test_uids_are_replaced_alike_in_all_files_of_a_run(tmp_path: Path) -> None:
    one, other = (copied(path) for path in write_series(tmp_path, values(2)))
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert one[name].value == other[name].value
        assert one[name].value not in (uid("P1", "study"), uid("P1", "ct"), uid("P1", "place"))
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SourceImageSequence[0].ReferencedSOPInstanceUID != uid("P1", "ct", 0)
    assert copied(next(tmp_path.iterdir()), key="l").FrameOfReferenceUID != one.FrameOfReferenceUID


def test_what_was_done_to_the_header_is_said_and_no_more(tmp_path: Path) -> None:
    copy = copied(write_series(tmp_path / "a", values(1))[0])
    assert copy.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in copy.DeidentificationMethodCodeSequence] == ["113100", "113105"]
    burnt = copied(write_series(tmp_path / "b", values(1), BurnedInAnnotation="YES")[0])
    assert (burnt.PatientIdentityRemoved, burnt.BurnedInAnnotation) == ("NO", "YES")
    kept = copied(write_series(tmp_path / "c", values(1))[0], keep_headers=True)
    assert "PatientIdentityRemoved" not in kept
    assert kept.FrameOfReferenceUID == uid("P1", "place")
    assert kept.SourceImageSequence[0].ReferencedSOPInstanceUID == uid("P1", "ct", 0)


@pytest.mark.parametrize("keep_headers", [False, True])
def test_a_copy_of_values_in_the_upper_bits_holds_them_in_the_lower_ones(tmp_path: Path, keep_headers: bool) -> None:
    stored = values(1).astype(np.uint16)
    path = write_series(tmp_path, stored << 4, HighBit=15)[0]
    copy = copied(path, stored=stored, keep_headers=keep_headers)
    assert (copy.BitsStored, copy.HighBit) == (12, 11)
    assert np.array_equal(copy.pixel_array, stored[0])


def test_slices_that_share_an_identifier_get_some_of_their_own(tmp_path: Path) -> None:
    paths = write_series(tmp_path, values(3), SOPInstanceUID=uid("all"))
    assert len({copied(path).SOPInstanceUID for path in paths}) == 3


ODD: dict[str, dict[str, Any]] = {
    "no frame of reference": {"FrameOfReferenceUID": None},
    "no thickness": {"SliceThickness": None},
    "an empty thickness": {"SliceThickness": ""},
    "no date of the study": {"StudyDate": None, "StudyTime": None},
    "a sex of the scanner's own": {"PatientSex": "MALE"},
    "an age for a birth date": {"PatientBirthDate": "19700101 (57Y)"},
    "nothing about the patient": {"PatientName": None, "PatientID": None, "PatientBirthDate": None, "PatientSex": None},
    "no study": {"StudyID": None, "AccessionNumber": None, "ReferringPhysicianName": None},
    "a time of midnight": {"StudyTime": "240000"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep_headers", [False, True])
@pytest.mark.parametrize("what", ODD)
def test_a_copy_and_its_seg_are_written_whatever_the_header_lacks(
    tmp_path: Path, what: str, keep_headers: bool
) -> None:
    stored, copies = values(2).astype(np.uint16), []
    for n, path in enumerate(write_series(tmp_path / "ct", stored, **ODD[what])):
        require_copy(path, 2.5, keep_headers=keep_headers)
        content = copy_bytes(path, stored[n : n + 1], patient="p", attack="a", key="k", keep_headers=keep_headers)
        copies.append(tmp_path / f"{n}.dcm")
        copies[-1].write_bytes(content)
    mask = np.zeros((2, *stored.shape[1:], 1), bool)
    mask[1, 2:5, 3:6] = True
    (tmp_path / "seg.dcm").write_bytes(seg_bytes(copies, mask, ["Liver"], "k", 2.5))
    seg = segread(tmp_path / "seg.dcm")
    assert int(seg.pixel_array.sum()) == 9
    assert seg.FrameOfReferenceUID == pydicom.dcmread(copies[0]).FrameOfReferenceUID
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == (2.5 if "thickness" in what else 5.0)


def test_a_run_on_series_without_place_and_thickness_ends_with_its_copies(tmp_path: Path) -> None:
    for n in range(1, 4):
        folder = tmp_path / "scans" / f"p{n}"
        odd = {"FrameOfReferenceUID": None, "SliceThickness": None, "PatientSex": "MALE", "StudyDate": None}
        write_series(folder, values(2, seed=n), patient=f"P{n}", **odd)
        contours = [square(3, 2, 4, -50 + z * 2.5) for z in range(2)]
        write_rtstruct(folder / "rs.dcm", {"Liver": contours}, patient=f"P{n}")
    run = attacked(tmp_path, tmp_path / "scans", "--keep-headers")
    medattack("verify", run)
    assert len(list((run / "adversarial").rglob("*.seg.dcm"))) == 3


def test_copies_that_cannot_be_written_are_refused_before_the_attack(tmp_path: Path) -> None:
    run = attacked(tmp_path, write_hospital(tmp_path / "scans", patients=3))
    shutil.rmtree(run.parents[2] / "scans" / "pat1")
    words = ("--data", tmp_path / "data", "-m", tmp_path / "model", "--attack", "fgsm", "--split", "all")
    out = tmp_path / "other"
    result = medattack("attack", *words, "--save-adversarial", "all", "--out", out, code=2)
    assert "expected a DICOM file at" in " ".join(result.stderr.split())
    assert not out.exists()
