"""nnU-Net v2's dataset.json: every word that it reserves is honoured or refused by name, for data and models alike."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers.command import medattack
from helpers.scans import write_acdc, write_channels, write_pair
from PIL import Image

from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError
from medseg_attack.models.nnunet.predictor import painted
from medseg_attack.specifications.nnunet import channel_names_of, labels_of

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}


def write(
    root: Path, content: dict[str, Any] | None = None, *, cases: int = 4, suffix: str = "Tr", start: int = 0
) -> Path:
    """Cases of labels 0 to 3."""
    for n in range(start, start + cases):
        write_pair(root / f"images{suffix}" / f"p_{n}_0000.nii.gz", root / f"labels{suffix}" / f"p_{n}.nii.gz")
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    return root


def source(root: Path, content: dict[str, Any], **options: Any) -> Source:
    return open_source("decathlon", write(root, content), options)


def test_a_name_may_hold_any_character(tmp_path: Path) -> None:
    for n in range(3):
        odd = f"a\nb {n}"
        write_pair(tmp_path / "imagesTr" / f"{odd}_0000.nii.gz", tmp_path / "labelsTr" / f"{odd}.nii.gz")
    data = open_source("decathlon", tmp_path, {})
    assert len(data.scans) == 3
    assert not [note for note in data.notes if "no image" in note or "no mask" in note]


def test_regions_are_classes_that_overlap(tmp_path: Path) -> None:
    data = source(tmp_path, REGIONS)
    assert (data.task.classes, data.task.exclusive) == (("whole", "core", "enhancing"), False)
    scan = data.scans[0].read()
    values = scan.lattice.from_file(np.arange(400).reshape(8, 10, 5) % 4)  # type: ignore[union-attr]
    for bit, inside in enumerate(([1, 2, 3], [2, 3], [3])):
        assert np.array_equal((scan.labels >> bit) & 1, np.isin(values, inside))


def test_regions_of_an_order_are_painted_as_nnunet_does() -> None:
    """The library writes a value where a region's probability is above 0.5, one region after the other."""
    rng = np.random.default_rng(0)
    for regions, order in [
        (((1, 2, 3), (2, 3), (3,)), (1, 2, 3)),
        (((1, 2), (2, 4), (4,)), (2, 1, 4)),
        (((1, 3), (2,), (1, 2)), (3, 2, 1)),
    ]:
        logits = rng.normal(size=(3, 500))
        map_ = np.zeros(500, int)
        for logit, value in zip(logits, order, strict=True):
            map_[logit > 0] = value
        inside = painted(torch.from_numpy(logits).reshape(3, 5, 10, 10), regions, order).reshape(3, -1) > 0
        for mask, values in zip(inside.numpy(), regions, strict=True):
            assert np.array_equal(mask, np.isin(map_, values))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"labels": REGIONS["labels"]}, "regions_class_order: expected one value for each of the 3 regions"),
        (REGIONS | {"regions_class_order": [1, 2]}, "regions_class_order"),
        (REGIONS | {"regions_class_order": "123"}, "regions_class_order"),
        (
            {"labels": {"background": 0, "a": [0, 1], "b": 2}, "regions_class_order": [1, 2]},
            "without the background's 0",
        ),
        ({"labels": {"background": 1, "liver": 0}}, "expected 0 as the label background"),
        ({"labels": {"background": 0, "ignore": 1, "liver": 2}}, "expected the highest label, and one, as 'ignore'"),
        ({"labels": {"background": 0, "liver": 1, "ignore": [2, 3]}}, "as 'ignore'"),
        ({"labels": {"background": 0, "liver": True}}, "expected labels such as"),
        ({"labels": {"background": 0, "liver": 1.5}}, "expected labels such as"),
        ({"labels": {"background": 0, "liver": []}}, "expected labels such as"),
        ({"labels": ["background", "liver"]}, "expected labels such as"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "expected each name once"),
        ({"file_ending": ".png"}, r"file_ending: expected \.nii\.gz or \.nii .*got '\.png'; put pictures into images/"),
        ({"file_ending": ".nrrd"}, r"file_ending: .*got '\.nrrd'; convert the files, for instance with SimpleITK"),
        ({"file_ending": ".mha"}, r"file_ending: .*got '\.mha'"),
        ({"file_ending": ".nii"}, r"no pair ending in \.nii"),
        ({"overwrite_image_reader_writer": "NaturalImage2DIO"}, "overwrite_image_reader_writer: expected SimpleITKIO"),
        (
            {"dataset": {"p_0": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}},
            "dataset: expected imagesTr/ and labelsTr/",
        ),
        ({"channel_names": {"1": "CT"}}, "numbered from 0"),
        ({"channel_names": ["CT"]}, "expected channels such as"),
    ],
)
def test_what_the_specification_does_not_allow_or_is_not_read_is_refused_by_name(
    tmp_path: Path, content: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        source(tmp_path, {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}} | content)
    assert "dataset.json" in str(error.value) or "imagesTr" in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"labels": {"background": 0, "liver": 1, "liver": 2, "x": 3}}', "got 'the key 'liver' twice in one object'"),
        ('{"labels": {}, "name": "a", "labels": {"background": 0, "liver": 1}}', "the key 'labels' twice"),
        ('{"labels": {"background": 0, "liver": 1%s}}' % ("0" * 6000), "got 'a number of 6001 digits'"),
    ],
)
def test_a_key_that_stands_twice_and_numbers_without_end_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (write(tmp_path) / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        open_source("decathlon", tmp_path)


def test_a_label_that_has_no_name_is_told_from_one_that_is_no_whole_number(tmp_path: Path) -> None:
    data = source(tmp_path, {"labels": {"background": 0, "liver": 1, "spleen": 2}})
    with pytest.raises(InputError, match=r"got 3 in .*; name the label in the data set, or correct the mask"):
        data.scans[0].read()
    path = tmp_path / "labelsTr" / "p_0.nii.gz"
    affine = nibabel.load(path).affine  # type: ignore[attr-defined]
    nibabel.save(nibabel.Nifti1Image(np.full((8, 10, 5), 0.5, np.float32), affine), path)
    with pytest.raises(InputError, match=r"got 0\.5 in 400 voxels .*; write whole numbers"):
        data.scans[0].read()


def test_voxels_to_ignore_have_no_truth(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 1, "spleen": 2}
    data = source(tmp_path / "used", {"labels": labels | {"ignore": 3}})
    assert data.task.classes == ("background", "liver", "spleen")
    with pytest.raises(InputError, match=r"got the label to ignore \(3\) in 100 voxels.*leave the case out"):
        data.scans[0].read()
    unused = source(tmp_path / "unused", {"labels": labels | {"third": 3, "ignore": 4}})
    assert unused.task.classes == ("background", "liver", "spleen", "third")
    unused.scans[0].read()


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_readers_of_nifti_read_the_same(tmp_path: Path, reader: str) -> None:
    data = source(tmp_path, {"overwrite_image_reader_writer": reader, "file_ending": ".nii.gz"})
    assert len(data.scans) == 4


@pytest.mark.parametrize(
    ("name", "unit"),
    [("CT", "HU"), ("ct", "HU"), ("CT_CBF", ""), ("CTA", ""), ("T1", ""), ("noNorm", ""), ("zscore", "")],
)
def test_only_the_reserved_name_of_ct_is_hounsfield_units(tmp_path: Path, name: str, unit: str) -> None:
    """CT perfusion maps such as cerebral blood flow are no Hounsfield units."""
    assert source(tmp_path, {"channel_names": {"0": name}}).scans[0].read().unit == unit


def test_a_count_that_is_another_one_is_noted(tmp_path: Path) -> None:
    assert "dataset.json speaks of 5 cases for training, and there are 4" in source(tmp_path, {"numTraining": 5}).notes
    listed = [{"image": f"./imagesTr/p_{n}.nii.gz", "label": f"./labelsTr/p_{n}.nii.gz"} for n in range(3)]
    assert any("speaks of 3 cases" in note for note in source(tmp_path, {"training": listed}).notes)


@pytest.mark.parametrize(
    "key", ["description", "reference", "licence", "release", "tensorImageSize", "numTest", "test", "converted_by"]
)
def test_keys_without_influence(tmp_path: Path, key: str) -> None:
    plain = source(tmp_path, {"name": "x"})
    other = source(tmp_path, {"name": "x", key: "3D"})
    assert (plain.task, plain.notes, len(plain.scans)) == (other.task, other.notes, len(other.scans))


def test_files_of_another_ending_are_no_second_case(tmp_path: Path) -> None:
    write(tmp_path)
    write_pair(tmp_path / "imagesTr" / "p_0_0000.nii", tmp_path / "other.nii")
    with pytest.raises(InputError, match="expected one file of each name"):
        open_source("decathlon", tmp_path)
    assert len(source(tmp_path, {"file_ending": ".nii.gz"}).scans) == 4


def test_pictures_in_nnunets_folders_are_refused_with_the_reason(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    with pytest.raises(InputError, match=r"expected NIfTI files .* in .*labelsTr, got a\.png; convert them"):
        open_source("decathlon", tmp_path)


def test_names_and_classes_are_the_same_for_data_and_model() -> None:
    for content in (REGIONS, {"labels": {"background": 0, "b": 2, "a": 1, "ignore": 3}}):
        labels = labels_of(content, Path("dataset.json"))
        assert labels.classes == (("whole", "core", "enhancing") if labels.regions else ("background", "a", "b"))
    assert channel_names_of({"channel_names": {"1": "b", "0": "a"}}, Path()) == ("a", "b")


def test_the_test_split_of_a_data_set_is_taken_if_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "in", suffix="Ts", start=10, cases=2)
    data = source(tmp_path / "in", {})
    assert len(data.scans) == 4
    assert any("--split-by folder" in note for note in data.notes)
    medattack(
        "prepare", tmp_path / "in", "--format", "decathlon", "--split-by", "folder", "--out", tmp_path / "out", "--json"
    )
    splits = open_prepared(tmp_path / "out").splits
    assert {patient for patient, part in splits.items() if part == "test"} == {"p_10", "p_11"}
    assert len(splits) == 6


def test_acdcs_test_patients_are_the_test_split_if_asked_for(tmp_path: Path) -> None:
    root = write_acdc(tmp_path, patients=6)
    (root / "testing").mkdir()
    for number in (5, 6):
        (root / "training" / f"patient{number:03d}").rename(root / "testing" / f"patient{number:03d}")
    assert any("--split-by folder" in note for note in open_source("acdc", root).notes)
    data = open_source("acdc", root, {"split_by": "folder"})
    assert {scan.group: scan.part for scan in data.scans} == {
        f"patient{n:03d}": "train" if n < 5 else "test" for n in range(1, 7)
    }


def test_folds_come_from_a_file(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {})
    names = [f"p_{n}" for n in range(4)]
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:1], "val": names[1:]}]
    file = root / "splits_final.json"
    file.write_text(json.dumps(folds))
    assert any(f"--split-by {file}" in note for note in open_source("decathlon", root).notes)
    words = ("prepare", root, "--format", "decathlon", "--split-by", file)
    medattack(*words, "--out", tmp_path / "out")
    data = open_prepared(tmp_path / "out")
    assert data.splits == {"p_0": 0, "p_1": 1, "p_2": 1, "p_3": 1}
    assert {ref.volume for ref in data.refs("val", 1)} == {"p_1", "p_2", "p_3"}
    file.write_text(json.dumps({"train": names[:2], "val": names[2:3], "test": names[3:]}))
    assert "split_file" in " ".join(medattack(*words, "--out", tmp_path / "out", code=2).stderr.split())
    medattack(*words, "--out", tmp_path / "three")
    assert open_prepared(tmp_path / "three").splits == {"p_0": 1, "p_1": 1, "p_2": 0, "p_3": "test"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"train": ["p_0", "p_1", "p_2", "p_3"], "val": ["x"]}], "expected cases of the data .* got 'x'"),
        ([{"train": [], "val": ["p_0", "p_1"]}], "expected p_2 in one part .* got none"),
        ([{"val": ["p_0", "p_1", "p_2", "p_3"]}, {"val": ["p_0"]}], "expected p_0 in one part .* got 0 and 1"),
        ({"folds": []}, "expected lists of cases under train and val"),
        ([["p_0"]], "expected lists of cases"),
        ([{"val": ["p_0", "p_1"]}, {"val": ["p_2", "p_3"]}], "expected the cases of the patient p in one part"),
    ],
)
def test_a_file_that_is_no_split_of_the_data_is_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content))
    words = ("--patient", "^p") if "patient p" in sentence else ()
    root = write(tmp_path / "in", {})
    said = medattack(
        "prepare", root, "--format", "decathlon", "--split-by", file, *words, "--out", tmp_path / "o", code=2
    )
    import re

    assert re.search(sentence, " ".join(said.stderr.split()))
    assert not (tmp_path / "o").exists()


def test_channels_in_files_and_along_an_axis_are_still_read(tmp_path: Path) -> None:
    for together in (True, False):
        assert open_source("decathlon", write_channels(tmp_path / str(together), together=together)).task.channels == 2
