"""Who is a patient, which files are one thing, and what is done about a label that a scan lacks, in every format."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers.command import medattack
from helpers.dicoms import square, values, write_hospital, write_rtstruct, write_series
from helpers.scans import acdc_paths, edit_csv, write_acdc, write_decathlon, write_pair, write_uw
from PIL import Image

from medseg_attack import registry
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.label_names import matching, parse
from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.errors import InputError


def pictures(root: Path, names: tuple[str, ...] = ("a1", "a2", "a3", "a4"), masks: tuple[str, ...] = ("",)) -> Path:
    for n, name in enumerate(names):
        for path in (root / "images" / f"{name}.png", *(root / "masks" / f"{name}{mask}.png" for mask in masks)):
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(n).integers(0, 255, (8, 9)) if path.parent.name == "images" else np.eye(8, 9)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "uw_madison": write_uw,
    "acdc": write_acdc,
    "decathlon": write_decathlon,
    "folder": pictures,
    "dicom": lambda root: write_hospital(root, patients=4),
    "phantom": lambda root: root,
}


def listing(form: str, root: Path, **options: Any) -> Source:
    return open_source(form, root, options)


@pytest.mark.parametrize("form", registry.names("dataset"))
def test_every_format_says_who_is_a_patient_and_can_be_told(tmp_path: Path, form: str) -> None:
    spec = "phantom(patients=3, slices=1, side=32)" if form == "phantom" else form
    root = WRITERS[form](tmp_path / "scans")
    assert listing(spec, root).patient_rule
    one = listing(spec, root, patient="^.")
    assert "--patient '^.'" in one.patient_rule
    assert len({scan.group for scan in one.scans}) < len(one.scans)
    with pytest.raises(InputError, match=r"--patient: expected 'nobody' in every file's name"):
        listing(spec, root, patient="nobody")
    with pytest.raises(InputError, match="expected a regular expression"):
        listing(spec, root, patient="(")


@pytest.mark.parametrize("form", ["uw_madison", "acdc", "dicom"])
def test_each_folder_is_a_patient(tmp_path: Path, form: str) -> None:
    source = listing(form, WRITERS[form](tmp_path / "scans"), patient="folder")
    assert len({scan.group for scan in source.scans}) == 4
    assert "folders" in source.patient_rule


@pytest.mark.parametrize("form", ["decathlon", "folder"])
def test_files_beside_one_another_have_no_folder(tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match=r"--patient folder: expected a folder for each patient.*got the file"):
        listing(form, WRITERS[form](tmp_path / "scans"), patient="folder")


def test_time_points_of_one_patient_are_pointed_out_and_kept_together(tmp_path: Path) -> None:
    for n in range(12):
        name = f"patient{n // 2:03d}_frame{1 + 11 * (n % 2):02d}"
        write_pair(tmp_path / "in" / "imagesTr" / f"{name}_0000.nii", tmp_path / "in" / "labelsTr" / f"{name}.nii")
    source = listing("decathlon", tmp_path / "in")
    (note,) = [note for note in source.notes if "--patient" in note]
    assert "12 patients by the format's own rule, but names suggest 6" in note
    assert "patient000_frame01 and patient000_frame12" in note
    advice = note.split("'")[-2]
    cohort = listing("decathlon", tmp_path / "in", patient=advice)
    assert len({scan.group for scan in cohort.scans}) == 6
    assert not any("--patient" in note for note in cohort.notes)
    medattack("prepare", tmp_path / "in", "--format", "decathlon", "--patient", advice, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["splits"].keys() == {f"patient{n:03d}" for n in range(6)}
    assert "--patient" in content["summary"]["patient_rule"]


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (("liver_0", "liver_1", "liver_10"), False),
        (("IMG_2020_001", "IMG_2020_002"), False),
        (("P01L", "P01R", "P02L", "P02R"), True),
        (("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"), True),
    ],
)
def test_names_suggest_a_shared_patient_by_their_first_number(names: tuple[str, ...], shared: bool) -> None:
    cases = {name: Named(name, Path(name), name) for name in names}
    assert bool(patients(cases, "", Path(), "by their names").warnings) is shared


def test_one_id_for_all_studies_is_asked_about(tmp_path: Path) -> None:
    import pydicom

    root = write_hospital(tmp_path / "scans", patients=4)
    for path in (path for path in root.rglob("*") if path.is_file()):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "ANONYMOUS"
        dataset.save_as(path)
    (note,) = [note for note in listing("dicom", root).notes if "PatientID" in note]
    assert note.startswith("all 4 series of ")
    assert "--patient folder" in note
    said = medattack("prepare", root, "--format", "dicom", "--out", tmp_path / "out", code=2).stderr
    assert "--patient" in " ".join(said.split())
    source = listing("dicom", root, patient="folder")
    assert len({scan.group for scan in source.scans}) == 4
    assert not any("PatientID" in note for note in source.notes)


def test_patients_who_are_spelt_alike_are_asked_about(tmp_path: Path) -> None:
    """One patient under two spellings would be in training and in test; headers themselves are not shown."""
    import pydicom

    root = write_hospital(tmp_path / "scans", patients=4)
    ids = ("PAT-0815", "pat 815", "PAT-0816", "")
    spelt = dict(zip(sorted(path.name for path in root.iterdir()), ids, strict=True))
    for path in (path for path in root.rglob("*") if path.is_file()):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = spelt[path.relative_to(root).parts[0]]
        dataset.save_as(path)
    first, second, *_ = spelt
    (note,) = [note for note in listing("dicom", root).notes if "spelt alike" in note]
    assert note.startswith(f"{first}/CT and {second}/CT are of patients")
    assert "81" not in note
    cases = {name: Named(name, Path(name), name) for name in ("Mueller/0", "mueller/1", "Maier/2")}
    for option in ("^[^/]+", "folder"):
        assert "spelt alike" in " ".join(patients(cases, option, Path(), "by their names").warnings)
    assert not patients(cases, r"\d$", Path(), "by their names").warnings


def test_two_files_for_one_scan_are_refused_in_every_format(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "endings")
    write_pair(root / "imagesTr" / "liver_1.nii", tmp_path / "other.nii")
    with pytest.raises(InputError, match=r"expected one file of each name.*liver_1\.nii.*liver_1\.nii\.gz"):
        listing("decathlon", root)
    root = write_acdc(tmp_path / "acdc")
    image = acdc_paths(root)[0]
    nibabel.save(nibabel.load(image), image.with_name(image.name.removesuffix(".gz")))
    with pytest.raises(InputError, match="expected one scan of each name"):
        listing("acdc", root)
    root = write_uw(tmp_path / "uw")
    (root / "train" / "case9").mkdir()
    (root / "train" / "case1" / "case1_day0").rename(root / "train" / "case9" / "case2_day0")
    with pytest.raises(InputError, match=r"expected one f.* for case2_day0"):
        listing("uw_madison", root)


@pytest.mark.parametrize("pair", [("scan", "SCAN"), ("é", unicodedata.normalize("NFD", "é"))])
@pytest.mark.parametrize("form", ["decathlon", "folder"])
def test_names_that_are_one_on_another_disk_are_refused(tmp_path: Path, form: str, pair: tuple[str, str]) -> None:
    for name in pair:
        if form == "folder":
            pictures(tmp_path / "in", (name,))
        else:
            write_pair(tmp_path / "in" / "imagesTr" / f"{name}.nii", tmp_path / "in" / "labelsTr" / f"{name}.nii")
    with pytest.raises(InputError, match=r"expected one .* of each name, whatever its case, accents or ending"):
        listing(form, tmp_path / "in")


def test_accents_in_two_forms_are_one_name(tmp_path: Path) -> None:
    """A Mac names the image, Linux its mask."""
    pictures(tmp_path, ("é1", "é2", "é3"))
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert [scan.id for scan in listing("folder", tmp_path).scans] == ["é1", "é2", "é3"]


def test_a_label_is_taken_by_its_name_before_any_pattern() -> None:
    names = ["Lung L", "Lung [L]", "lung l", "GTV|boost", "PTV=60,Gy", 'say "ah"', "Kidney L", "Kidney R", "*"]

    def taken(text: str) -> dict[str, tuple[str, ...]]:
        return matching(parse(text), names)

    assert taken("lung=Lung [L]") == {"lung": ("Lung [L]",)}
    assert taken("lung=Lung L") == {"lung": ("Lung L",)}
    assert taken("lung=LUNG L") == {"lung": ("Lung L", "lung l")}
    assert taken('gtv="GTV|boost",ptv="PTV=60,Gy"') == {"gtv": ("GTV|boost",), "ptv": ("PTV=60,Gy",)}
    assert taken('a="say ""ah"""') == {"a": ('say "ah"',)}
    assert taken("kidney=Kidney *|Lung [L]") == {"kidney": ("Lung [L]", "Kidney L", "Kidney R")}
    assert taken("star=*") == {"star": ("*",)}
    assert taken('kidney="Kidney *"') == {"kidney": ()}  # in quotes nothing is a wildcard
    assert taken("Kidney L,Lung [L]") == {"Kidney L": ("Kidney L",), "Lung [L]": ("Lung [L]",)}  # named after its label
    assert taken('"GTV|boost"') == {"GTV|boost": ("GTV|boost",)}


@pytest.mark.parametrize("text", ["a=", "=x", "a=x,a=y", "a=x|", "a,", ",a", 'a="x', 'a="x"y', "a=b=c", '""'])
def test_labels_of_no_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected CLASS=NAME"):
        parse(text)


def test_an_image_without_a_mask_of_a_class_lacks_the_organ_or_is_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, masks=("_disc", "_cup"))
    (tmp_path / "masks" / "a2_cup.png").unlink()
    source = listing("folder", tmp_path)
    assert len(source.scans) == 4
    assert "cup is taken as absent from 1 of 4 scans, which have no label of it: a2 (only disc)" in source.notes
    dropped = listing("folder", tmp_path, missing="drop")
    assert [scan.id for scan in dropped.scans] == ["a1", "a3", "a4"]
    assert "a2 is left out: it has no cup, only disc" in dropped.notes
    with pytest.raises(InputError, match=r"expected a label of cup in a2.*--missing drop"):
        listing("folder", tmp_path, missing="refuse")
    with pytest.raises(InputError, match="expected absent, drop or refuse, got 'dorp'; did you mean drop"):
        listing("folder", tmp_path, missing="dorp")


def test_a_slice_without_a_row_is_refused_unless_it_may_lack_the_organ(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    edit_csv(root, lambda rows: rows.remove(next(row for row in rows if row[0].startswith("case1_") and row[2])))
    with pytest.raises(InputError, match=r"expected a row for each.*--missing absent"):
        listing("uw_madison", root)
    absent = listing("uw_madison", root, missing="absent")
    assert not (absent.scans[0].read().labels[0] & 1).any()
    (note,) = [note for note in absent.notes if "large_bowel is taken as absent from 1 of 2" in note]
    assert note.endswith("(only small_bowel, stomach)")
    assert [scan.id for scan in listing("uw_madison", root, missing="drop").scans] == [
        f"case{n}_day0" for n in (2, 3, 4)
    ]


def test_more_overlapping_classes_than_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    pictures(tmp_path / "in", ("a",), masks=tuple(f"_organ{n}" for n in range(33)))
    with pytest.raises(InputError, match="expected at most 32 classes that may overlap, got 33"):
        listing("folder", tmp_path / "in")


def test_a_class_that_is_called_as_the_average_in_tables_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "in", ("a",), masks=("_mean", "_organ"))
    with pytest.raises(InputError, match="expected names of classes other than 'mean', as tables call the average"):
        listing("folder", tmp_path / "in")


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    accents = ("é", unicodedata.normalize("NFD", "é"))
    with pytest.raises(InputError, match="expected one class of each name"):
        listing(f"decathlon(classes={accents!r})", write_decathlon(tmp_path / "in"))


def cohort(root: Path) -> Path:
    """Four patients, the last of whom has no gallbladder, or calls it otherwise."""
    for n in range(4):
        write_series(root / f"p{n}" / "CT", values(3, seed=n), patient=f"P{n}")
        regions = {"Liver": [square(3, 2, 4, -50 + z * 2.5) for z in range(3)]}
        regions["gall bladder" if n == 3 else "Gallbladder"] = [square(6, 2, 4, -50 + z * 2.5) for z in range(3)]
        write_rtstruct(root / f"p{n}" / "rs.dcm", regions, patient=f"P{n}")
    return root


def test_a_label_that_is_not_drawn_is_not_named_among_those_that_a_scan_has(tmp_path: Path) -> None:
    root = cohort(tmp_path / "in")
    undrawn = {"Liver": [square(3, 2, 4, -50 + z * 2.5) for z in range(3)], "Gallbladder": []}
    write_rtstruct(root / "p3" / "rs.dcm", undrawn, patient="P3")
    labels = "liver=Liver,gallbladder=Gallbladder"
    (note,) = [note for note in listing("dicom", root, labels=labels, missing="drop").notes if "left out" in note]
    assert note.endswith("it has no gallbladder, only Liver")
    with pytest.raises(InputError, match=r"expected a label of gallbladder in p3.*, got Liver; add it"):
        listing("dicom", root, labels=labels, missing="refuse")


def test_one_patient_without_an_organ_does_not_stop_a_cohort(tmp_path: Path) -> None:
    root, labels = cohort(tmp_path / "in"), "liver=Liver,gallbladder=Gallbladder"
    unlike = (
        r"for all series, got Liver, Gallbladder in p[012]\S* and Liver, gall bladder in p3.*--missing absent or drop"
    )
    with pytest.raises(InputError, match=unlike):
        listing("dicom", root)
    source = listing("dicom", root, labels=labels)
    assert len(source.scans) == 4
    (note,) = [note for note in source.notes if "gallbladder" in note]
    assert note.startswith("gallbladder is taken as absent from 1 of 4 scans, which have no label of it: p3")
    assert "(only Liver, gall bladder)" in note  # so that the other spelling is noticed
    present = [bool((scan.read().labels & 2).any()) for scan in source.scans]
    assert sorted(present) == [False, True, True, True]
    assert len(listing("dicom", root, labels=labels, missing="drop").scans) == 3
    with pytest.raises(InputError, match=r"expected a label of gallbladder in p3.*, got Liver, gall bladder; add it"):
        listing("dicom", root, labels=labels, missing="refuse")
    every = listing("dicom", root, missing="absent")
    assert every.task.classes == ("Liver", "Gallbladder", "gall bladder")
    only = listing("dicom", root, labels="gb=gall bladder")
    assert len(only.scans) == 1  # the others have none of the labels
    assert sum("left out: it has none of the labels, only Liver, Gallbladder" in note for note in only.notes) == 3
    with pytest.raises(InputError, match='expected a label "pancreas" for pancreas'):
        listing("dicom", root, labels="pancreas")
    (note, *_) = listing("dicom", root, labels="Liver,bladder=gall bladder", missing="drop").notes
    assert "it has no bladder, only Liver, Gallbladder" in note
    with pytest.raises(InputError, match="--missing drop: expected a series"):
        listing("dicom", root, labels="a=Gallbladder,b=gall bladder", missing="drop")


def test_a_region_that_nobody_drew_is_an_absent_organ_or_lacks_as_the_rule_says(tmp_path: Path) -> None:
    root = cohort(tmp_path / "in")
    liver = [square(3, 2, 4, -50 + z * 2.5) for z in range(3)]
    write_rtstruct(root / "p3" / "rs.dcm", {"Liver": liver, "Gallbladder": []}, patient="P3")
    assert len(listing("dicom", root).scans) == 4
    assert len(listing("dicom", root, missing="drop").scans) == 3
    with pytest.raises(InputError, match=r"expected a label of Gallbladder in p3"):
        listing("dicom", root, missing="refuse")
