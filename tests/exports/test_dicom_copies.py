"""Perturbed DICOM: written, then read by pydicom and highdicom alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from helpers.dicoms import (
    EPS,
    attacked,
    box,
    copies,
    medattack,
    uid,
    values,
    write_enhanced,
    write_hospital,
    write_seg,
    write_series,
)
from highdicom.seg import segread

from medseg_attack import registry
from medseg_attack.data.formats.dicom.writing import DESCRIPTION, copy_bytes
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError
from medseg_attack.exports.segmentations import write_segmentations
from medseg_attack.models.checkpoints import load
from medseg_attack.models.segmodel import frozen
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.runs.folder import RunFolder
from medseg_attack.storage.json_files import read_json
from medseg_attack.types import Batch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dicom")
    return attacked(root, write_hospital(root / "scans"))


def pairs(run: Path) -> list[tuple[pydicom.Dataset, pydicom.Dataset]]:
    files = copies(run, run.parents[2] / "scans")
    assert len(files) == 12
    return [(pydicom.dcmread(before), pydicom.dcmread(after)) for before, after in files]


def test_copies_are_inside_the_budget_on_the_same_grid_and_bits(run: Path) -> None:
    moved = 0
    for before, after in pairs(run):
        change = np.abs(after.pixel_array.astype(int) - before.pixel_array)
        assert change.max() <= EPS
        moved += change.max() == EPS
        assert after.pixel_array.max() < 2**12
        for name in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "Modality",
            "RescaleIntercept",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
            "Rows",
            "Columns",
            "PhotometricInterpretation",
            "SOPClassUID",
        ):
            assert after[name].value == before[name].value
    assert moved == 12


def test_copies_say_what_they_are(run: Path) -> None:
    for before, after in pairs(run):
        assert after.SeriesDescription == DESCRIPTION
        assert "linf(eps=40raw)" in after.ImageComments
        assert "not for diagnosis" in after.ImageComments
        assert list(after.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert after.SourceImageSequence[0].ReferencedSOPInstanceUID not in (
            before.SOPInstanceUID,
            after.SOPInstanceUID,
        )
        for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert after[name].value != before[name].value
        assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    after_attack = [after for _, after in pairs(run)]
    assert len({copy.SOPInstanceUID for copy in after_attack}) == 12
    assert len({copy.SeriesInstanceUID for copy in after_attack}) == 4
    assert len({copy.FrameOfReferenceUID for copy in after_attack}) == 4  # files of one space stay in one


def test_nothing_of_the_patient_is_in_what_a_run_writes(run: Path) -> None:
    canaries = (b"Doe", b"Jane", b"Canary", b"Roe", b"19700101", b"20200101", b"A77")
    for file in [*run.rglob("*"), *(run.parents[2] / "data").rglob("*")]:
        if file.is_file():
            content = file.read_bytes()
            assert not any(canary in content for canary in canaries), file


def test_no_name_of_the_source_is_in_what_a_run_writes(run: Path) -> None:
    """Folders of hospitals are called by their patients: here `pat1/CT/IM001`."""
    files = [file for file in run.parent.rglob("*") if file.is_file()]
    assert sum(file.suffix == ".dcm" for file in files) == 12 + 4
    for file in files:
        assert not any(word in str(file.relative_to(run.parent)) for word in ("pat", "IM0")), file
        assert b"pat1" not in file.read_bytes(), file
        assert b"IM001" not in file.read_bytes(), file
    data = open_prepared(run.parents[2] / "data")
    names = {f"{scan}/{case}.dcm" for scan, record in data.records.items() for case in record.case_ids}
    assert {file["path"] for file in read_json(run / "adversarial" / "manifest.json")["files"]} == names


def test_headers_are_kept_when_asked_for(tmp_path: Path) -> None:
    run = attacked(tmp_path, write_hospital(tmp_path / "scans", patients=3), "--keep-headers")
    files = copies(run, tmp_path / "scans")
    assert len(files) == 9
    for copy in (pydicom.dcmread(path) for _, path in files):
        assert (copy.PatientName, copy.InstitutionName) == ("Doe^Jane", "Canary Hospital")
        assert copy.StudyInstanceUID == uid(copy.PatientID, "study")
        assert copy.SeriesInstanceUID != uid(copy.PatientID, "ct")
        assert copy.SeriesDescription == DESCRIPTION
    medattack("verify", run)


@pytest.mark.parametrize(("modality", "sign"), [("CT", 1), ("MR", -1)])
def test_copies_of_monochrome1_are_inside_the_budget(tmp_path: Path, modality: str, sign: int) -> None:
    options = {"modality": modality, "PhotometricInterpretation": "MONOCHROME1"}
    run = attacked(tmp_path, write_hospital(tmp_path / "scans", patients=3, **options))
    data = open_prepared(tmp_path / "data")
    assert {record.slope for record in data.records.values()} == {sign}
    for pair in copies(run, tmp_path / "scans"):
        before, after = map(pydicom.dcmread, pair)
        assert after.PhotometricInterpretation == "MONOCHROME1"
        assert 0 < np.abs(after.pixel_array.astype(int) - before.pixel_array).max() <= EPS
    medattack("verify", run)


def test_verify_passes_and_finds_one_grey_value_too_many(tmp_path: Path) -> None:
    run = attacked(tmp_path, write_hospital(tmp_path / "scans", patients=3))
    results = json.loads(medattack("verify", run, "--json").stdout)
    assert [one["verified"] for one in results] == [True]
    before, path = copies(run, tmp_path / "scans")[0]
    source = pydicom.dcmread(before).pixel_array.astype(int)
    copy = pydicom.dcmread(path)
    pixels = copy.pixel_array.copy()
    at = np.unravel_index(np.abs(pixels - source).argmax(), pixels.shape)
    pixels[at] += np.sign(int(pixels[at]) - source[at])
    copy.PixelData = pixels.tobytes()
    copy.PixelSpacing = [0.8, 0.8]
    copy.save_as(path)
    said = medattack("verify", run, "--json", code=1).stdout
    for word in ("sha256", "the change has size", "spacing"):
        assert word in said
    seg = next((run / "adversarial").rglob("*.seg.dcm"))
    seg.write_bytes(seg.read_bytes()[:-1] + b"\x01")
    assert "not the segmentation that was written" in medattack("verify", run, "--json", code=1).stdout


def test_the_segmentation_is_what_the_model_sees_in_the_copy(run: Path) -> None:
    """Pixels predicted on each attacked slice, by its row in the table, equal those of the SEG that highdicom reads."""
    rows = RunFolder(run).rows().set_index("case")
    segs = list((run / "adversarial").rglob("*.seg.dcm"))
    assert len(segs) == 4
    data = open_prepared(run.parents[2] / "data")
    total = 0
    for path in segs:
        seg = segread(path)
        assert seg.SeriesDescription == DESCRIPTION
        assert [one.SegmentLabel for one in seg.SegmentSequence] == ["Liver"]
        record = data.records[path.name.removesuffix(".seg.dcm")]
        for case in record.case_ids:
            copy = pydicom.dcmread(path.parent / f"{case}.dcm").SOPInstanceUID
            if copy in {source for _, _, source in seg.get_source_image_uids()}:
                n = int(seg.get_pixels_by_source_instance([copy], segment_numbers=[1]).sum())
            else:
                n = 0  # empty frames are left out
            assert n == rows.loc[case, "n_adv"]
            total += n
    assert total > 0


def test_enhanced_multi_frame_scans_are_written_back(tmp_path: Path) -> None:
    scales = [(1.0, 0.0), (2.0, -5.0), (0.5, 3.0), (1.0, 1.0)]
    for n in range(1, 4):
        path = write_enhanced(
            tmp_path / "scans" / f"p{n}.dcm", values(4, seed=n), scales, (2, 0, 3, 1), patient=f"P{n}"
        )
        write_seg(tmp_path / "scans" / f"seg{n}.dcm", [path], box(4, 3, 7, 2, 6), ["Liver"])
    run = attacked(tmp_path, tmp_path / "scans")
    files = copies(run, tmp_path / "scans")
    assert [one.name for one, _ in sorted(files)] == ["p1.dcm", "p2.dcm", "p3.dcm"]
    for pair in files:
        before, after = map(pydicom.dcmread, pair)
        change = np.abs(after.pixel_array.astype(int) - before.pixel_array)
        assert 0 < change.max() <= EPS
        assert all(frame.max() > 0 for frame in change)
        for old, new in zip(
            before.PerFrameFunctionalGroupsSequence, after.PerFrameFunctionalGroupsSequence, strict=True
        ):
            assert new.PlanePositionSequence == old.PlanePositionSequence
            assert new.PixelValueTransformationSequence == old.PixelValueTransformationSequence
            assert new.MRImageFrameTypeSequence[0].FrameType[:2] == ["DERIVED", "SECONDARY"]
        assert segread(pair[1].with_suffix(".seg.dcm")).NumberOfFrames >= 1
    medattack("verify", run)


@pytest.mark.parametrize("limit", [1, 3, 6])
def test_frames_that_were_not_attacked_are_not_in_the_segmentation(tmp_path: Path, limit: int) -> None:
    for n in range(1, 4):
        path = write_enhanced(
            tmp_path / "scans" / f"p{n}.dcm", values(4, seed=n), [(1.0, 0.0)] * 4, (2, 0, 3, 1), patient=f"P{n}"
        )
        write_seg(tmp_path / "scans" / f"seg{n}.dcm", [path], box(4, 3, 7, 2, 6), ["Liver"])
    run = attacked(tmp_path, tmp_path / "scans", "--limit", str(limit))
    rows, data = RunFolder(run).rows().set_index("case"), open_prepared(tmp_path / "data")
    predicted = 0
    for path in (run / "adversarial").rglob("*.seg.dcm"):
        seg, record = segread(path), data.records[path.name.removesuffix(".seg.dcm")]
        copy = pydicom.dcmread(path.with_name(f"{record.id}.dcm"))
        for case, (_, frame) in zip(record.case_ids, record.frames, strict=True):
            if case in rows.index:
                pixels = seg.get_pixels_by_source_frame(
                    copy.SOPInstanceUID, [frame + 1], segment_numbers=[1], assert_missing_frames_are_empty=True
                )
                assert pixels.sum() == rows.loc[case, "n_adv"]
                predicted += 1
        sources = {frame for item in seg.PerFrameFunctionalGroupsSequence for frame in _source_frames(item)}
        assert sources <= {
            frame + 1 for case, (_, frame) in zip(record.case_ids, record.frames, strict=True) if case in rows.index
        }
    assert predicted == limit
    medattack("verify", run)


def _source_frames(item: pydicom.Dataset) -> list[int]:
    return [source.ReferencedFrameNumber for one in item.DerivationImageSequence for source in one.SourceImageSequence]


def test_the_worst_files_alone_are_written_with_their_segmentation(tmp_path: Path) -> None:
    run = attacked(tmp_path, write_hospital(tmp_path / "scans", patients=3), "--save-adversarial", "worst:2")
    manifest = read_json(run / "adversarial" / "manifest.json")
    assert len(manifest["files"]) == 2
    assert {one["scan"] for one in manifest["segmentations"]} == {file["scan"] for file in manifest["files"]}
    medattack("verify", run)


@pytest.mark.parametrize("damage", ["scan", "path", "slices", "copy"])
def test_copies_that_are_not_those_of_the_run_are_refused_before_they_are_segmented(
    run: Path, damage: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    listed = folder / "adversarial" / "manifest.json"
    manifest = read_json(listed)
    del manifest["segmentations"]
    first = manifest["files"][0]
    if damage == "copy":
        path = folder / "adversarial" / first["path"]
        path.write_bytes(path.read_bytes()[:-2])
    else:
        first[damage] = {"scan": "nobody", "path": "nowhere.dcm", "slices": [99]}[damage]
    listed.write_text(json.dumps(manifest))
    root = run.parents[2]
    data = open_prepared(root / "data")
    model = load(root / "model", data.task, torch.device("cpu"))
    with pytest.raises(InputError, match=r"expected the copies that were written to .*; delete .*, attack again"):
        write_segmentations(folder, data, model, torch.device("cpu"))


def test_stored_values_stay_in_their_bits(tmp_path: Path) -> None:
    """A slice at the end of its 12 bits inside 16, pushed out of them: nothing passes 4095 or goes below 0."""
    stored = values(3, low=0, high=4096)
    stored[:, ::2], stored[:, 1::2] = 4090, 5
    for n in range(1, 4):
        images = write_series(tmp_path / "scans" / f"p{n}", stored, patient=f"P{n}")
        write_seg(tmp_path / "scans" / f"seg{n}.dcm", images, box(3, 3, 7, 2, 6), ["Liver"])
    medattack("prepare", tmp_path / "scans", "--format", "dicom", "--window=-3000,6000", "--out", tmp_path / "data")
    data = open_prepared(tmp_path / "data")
    case = data.read(data.refs("all")[0])
    levels = StoredValues.of([case], "cpu")
    assert levels is not None
    ball = registry.build("linf(0.02)", "ball")
    x0 = case.image[None]
    for sign, most, least in ((1, 4095, 5 + 180), (-1, 4090 - 180, 0)):  # 0.02 of the window are 180 values
        rounded = levels.nearest(x0 + sign * 0.02, x0, ball)
        assert (rounded.max(), rounded.min()) == (most, least)


def test_equal_runs_write_equal_bytes_and_others_other_uids(tmp_path: Path) -> None:
    path = write_series(tmp_path, values(1))[0]
    stored = values(1).astype(np.uint16)
    options = {"patient": "p", "attack": "a", "keep_headers": False}
    first, again, other = (copy_bytes(path, stored, key=key, **options) for key in ("k", "k", "l"))  # type: ignore[arg-type]
    assert first == again
    assert first != other


def test_a_model_scores_copies_as_the_run_did(run: Path, tmp_path: Path) -> None:
    """The copies as a new source, with RTSTRUCTs of the truth: prepared, predicted, and the same pixels are found."""
    root = run.parents[2]
    before = open_prepared(root / "data")
    model = load(root / "model", before.task, torch.device("cpu"))
    rows = RunFolder(run).rows().set_index("case")
    for ref in before.refs("all"):
        record = before.records[ref.volume]
        copy = pydicom.dcmread(run / "adversarial" / ref.volume / f"{ref.id}.dcm")
        native = copy.pixel_array * float(copy.RescaleSlope) + float(copy.RescaleIntercept)
        low, high = record.windows[ref.index]
        image = torch.from_numpy(np.clip((native - low) / (high - low), 0, 1).astype(np.float32))[None, None]
        target = Batch.of([before.read(ref)]).target
        with frozen(model), torch.no_grad():
            pred = model.decide(model(image))
        assert int(pred.sum()) == rows.loc[ref.id, "n_adv"]
        assert int((pred & target).sum()) == rows.loc[ref.id, "hit_adv"]
