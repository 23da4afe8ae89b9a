"""What the readers make of the layouts that are out there, and of real scans."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.scans import acdc_paths, edit_csv, write_acdc, write_decathlon, write_pair, write_uw
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.datasets.uw_madison import read_table
from medseg_attack.data.formats.label_values import LabelValues
from medseg_attack.data.formats.nifti import read_pair
from medseg_attack.data.formats.scan import Lattice
from medseg_attack.errors import InputError
from medseg_attack.registry import build, names, spec


def test_every_format_is_its_spec() -> None:
    for name in names("dataset"):
        assert spec(build(name, "dataset")) == name


def test_uw_madison_is_read_by_name_and_in_order(tmp_path: Path) -> None:
    source = open_source("uw_madison", write_uw(tmp_path / "uw", slices=3))
    assert [scan.id for scan in source.scans] == [f"case{i}_day0" for i in range(1, 5)]
    scan = source.scans[0].read()
    assert scan.stored.shape == (3, 12, 16)
    assert scan.stored.dtype == np.uint16
    assert scan.spacing_mm == (3.0, 1.63, 1.5)  # names hold the spacing of columns, then of rows
    assert scan.case_ids == tuple(f"case1_day0_slice_{i:04d}" for i in (1, 2, 3))


@pytest.mark.parametrize(("drop", "left"), [("paper", 3), ("author", 2), ("none", 4)])
def test_badly_annotated_scans_are_left_out_by_list(tmp_path: Path, drop: str, left: int) -> None:
    root = write_uw(tmp_path / "uw")
    for number, case, scan in ((1, "case7", "case7_day0"), (2, "case9", "case9_day27")):
        (root / "train" / f"case{number}").rename(root / "train" / case)
        (root / "train" / case / f"case{number}_day0").rename(root / "train" / case / scan)

    def rename(rows: list[list[str]]) -> None:
        for row in rows:
            row[0] = row[0].replace("case1_day0", "case7_day0").replace("case2_day0", "case9_day27")

    edit_csv(root, rename)
    source = open_source(f"uw_madison(drop={drop!r})", root)
    assert len(source.scans) == left
    assert len(source.notes) == 4 - left


def test_a_scan_without_any_row_is_left_out_by_name(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    edit_csv(root, lambda rows: rows.__setitem__(slice(None), [r for r in rows if not r[0].startswith("case2_")]))
    source = open_source("uw_madison", root)
    assert [scan.id for scan in source.scans] == ["case1_day0", "case3_day0", "case4_day0"]
    assert "case2_day0" in source.notes[0]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL", "ILP", "ASR", "PIR"])
def test_orientation_and_spacing_do_not_depend_on_the_file_s_order(tmp_path: Path, codes: str) -> None:
    """One axial scan (4 mm between slices), stored along any axes: the same slices, rows and columns come out."""
    rng = np.random.default_rng(0)
    canonical = nibabel.Nifti1Image(rng.integers(0, 99, (6, 7, 5)).astype(np.int16), np.diag((1.0, 1.5, 4.0, 1.0)))
    turn = ornt_transform(io_orientation(canonical.affine), axcodes2ornt(tuple(codes)))
    turned = canonical.as_reoriented(turn)
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    stored = np.asarray(turned.dataobj)
    write_pair(image, mask, image=stored, mask=stored % 4, affine=turned.affine)
    scan = read_pair("a", image, mask, LabelValues.single(0, 1, 2, 3))
    head_up = np.asarray(canonical.dataobj).transpose(2, 1, 0)  # RAS: x to the right, y to the front, z to the head
    assert np.array_equal(scan.stored, head_up[:, ::-1, ::-1])
    assert np.array_equal(scan.labels, scan.stored % 4)
    assert scan.spacing_mm == pytest.approx((4.0, 1.5, 1.0))
    assert scan.lattice is not None
    assert np.array_equal(scan.lattice.to_file(scan.stored), stored)
    assert np.allclose(scan.affine, turned.affine)


@pytest.mark.parametrize(
    ("spacing", "through"),
    [((1, 1, 1), 2), ((5, 1, 1), 0), ((1, 3, 1.1), 1), ((0.9, 0.9, 0.7), 2), ((0.7, 0.9, 0.9), 0), ((1, 1.004, 1), 2)],
)
def test_slices_lie_along_the_axis_whose_spacing_differs(
    tmp_path: Path, spacing: tuple[float, float, float], through: int
) -> None:
    write_pair(tmp_path / "image.nii", tmp_path / "mask.nii", affine=np.diag((*spacing, 1.0)))
    scan = read_pair("a", tmp_path / "image.nii", tmp_path / "mask.nii", LabelValues.single(0, 1, 2, 3))
    assert scan.lattice is not None
    assert scan.lattice.axes[0] == through
    assert scan.spacing_mm[0] == pytest.approx(spacing[through])


def test_a_lattice_can_be_undone() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    lattice = Lattice((2, 3, 4), (2, 0, 1), (True, False, True))
    assert lattice.from_file(array).shape == (4, 2, 3)
    assert np.array_equal(lattice.to_file(lattice.from_file(array)), array)


def test_acdc_takes_either_folder_and_names_what_has_no_mask(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    acdc_paths(root, 3)[1].unlink()
    (root / "training" / "patient001" / "patient001_4d.nii.gz").write_bytes(b"not read")
    for place in (root, root / "training"):
        source = open_source("acdc", place)
        assert [scan.group for scan in source.scans] == ["patient001", "patient002", "patient004"]
        assert "patient003_frame01" in source.notes[0]


def described(root: Path, content: dict) -> Path:
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("", {"labels": {"0": "background", "1": "liver", "2": "tumour", "3": "duct"}, "modality": {"0": "CT"}}),
        ("_0000", {"labels": {"background": 0, "duct": 3, "liver": 1, "tumour": 2}, "channel_names": {"0": "CT"}}),
    ],
)
def test_both_dialects_of_dataset_json(tmp_path: Path, suffix: str, content: dict) -> None:
    source = open_source("decathlon", described(write_decathlon(tmp_path / "task", suffix=suffix), content))
    assert source.task.classes == ("background", "liver", "tumour", "duct")
    assert [scan.id for scan in source.scans] == [f"liver_{i}" for i in range(4)]
    assert source.scans[0].read().unit == "HU"


def test_without_dataset_json_the_labels_are_those_of_the_masks_or_those_given(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "task")
    assert open_source("decathlon", root).task.classes == ("background", "label_1", "label_2", "label_3")
    assert open_source("decathlon(classes=('a', 'b', 'c'))", root).task.classes == ("background", "a", "b", "c")


def test_labels_with_gaps_become_consecutive_classes(tmp_path: Path) -> None:
    for number in range(3):
        names = (tmp_path / part / f"x_{number}.nii" for part in ("imagesTr", "labelsTr"))
        write_pair(*names, mask=(np.arange(400) % 2 * 205).reshape(8, 10, 5))
    source = open_source("decathlon", described(tmp_path, {"labels": {"0": "background", "205": "cord"}}))
    assert source.task.classes == ("background", "cord")
    assert np.unique(source.scans[0].read().labels).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"modality": {"0": "T1", "1": "T2"}}, "expected 2 channels"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order"),
        ({"labels": {"liver": 1, "tumour": 2}}, "0 for background"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "different labels"),
    ],
)
def test_what_dataset_json_cannot_say_so_far_is_told(tmp_path: Path, content: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=r"dataset\.json") as error:
        open_source("decathlon", described(write_decathlon(tmp_path / "task"), content))
    assert sentence in str(error.value)


def test_a_channel_that_other_cases_lack_is_told(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "task", suffix="_0000")
    (root / "imagesTr" / "liver_0_0001.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected 2 files for liver_1 as for liver_0.*liver_1_0000"):
        open_source("decathlon", root)


def test_a_phantom_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    trees = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root, seed in ((tmp_path / "a", 0), (tmp_path / "b", 0), (tmp_path / "c", 1))
        if open_source(f"phantom(patients=3, slices=3, side=32, seed={seed})", root)
    ]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_a_phantom_has_what_makes_a_scan_hard(tmp_path: Path) -> None:
    source = open_source("phantom(patients=5)", tmp_path / "phantom")
    scans = [file.read() for file in source.scans]
    labels = np.concatenate([scan.labels for scan in scans])
    slices = labels.reshape(len(labels), -1)
    assert {int(k) for k in np.unique(labels)} >= {0, 1, 2, 4, 5, 6}  # organs alone, and overlapping
    for bit in (1, 2, 4):
        present = ((slices & bit) > 0).any(axis=1)
        assert 0.3 < present.mean() < 1
    assert len({scan.stored.max() for scan in scans}) > 2
    assert Counter(file.group for file in source.scans).keys() == {f"case{i}" for i in range(1, 6)}


def test_what_a_killed_process_left_of_a_phantom_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from medseg_attack.data.datasets import phantom\n"
        "phantom.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "phantom.Phantom(patients=3, slices=1, side=32).listing(Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "phantom")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".phantom.*.part/train.csv"))) == 1
    (tmp_path / ".phantom.abc.part").mkdir()  # a user's: it has no lock
    open_source("phantom(patients=3, slices=1, side=32)", tmp_path / "phantom")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".phantom.abc.part", "phantom"]
    assert sorted(path.name for path in (tmp_path / "phantom").iterdir()) == ["phantom.json", "train", "train.csv"]


def test_a_phantom_does_not_mix_with_other_files(tmp_path: Path) -> None:
    open_source("phantom(patients=3, slices=1, side=32)", tmp_path / "phantom")
    with pytest.raises(InputError, match="seed=5"):
        open_source("phantom(patients=3, slices=1, side=32, seed=5)", tmp_path / "phantom")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.png").write_bytes(b"")
    with pytest.raises(InputError, match="empty folder or a phantom"):
        open_source("phantom", tmp_path / "mine")


@pytest.mark.data
def test_real_uw_madison(real_data) -> None:
    source = open_source("uw_madison", real_data("uw_madison"))
    scans = {file.id: file.read() for file in source.scans}
    assert sum(len(scan.stored) for scan in scans.values()) == 36
    assert len({file.group for file in source.scans}) == 12
    assert scans["case113_day12"].stored.shape[1:] == (310, 360)  # slice_0054_360_310: width, then height
    assert {scan.stored.dtype for scan in scans.values()} == {np.dtype(np.uint16)}


@pytest.mark.data
def test_real_acdc(real_data) -> None:
    source = open_source("acdc", real_data("acdc"))
    scans = [file.read() for file in source.scans]
    assert (len(scans), len({file.group for file in source.scans})) == (40, 20)
    assert all(np.unique(scan.labels).tolist() == [0, 1, 2, 3] for scan in scans)
    assert {str(scan.stored.dtype) for scan in scans} == {"float32", "int16"}
    # the affines of these files have no scale; the header's pixdim has
    assert all(5 <= scan.spacing_mm[0] <= 10 and 0.83 <= min(scan.spacing_mm) <= 1.88 for scan in scans)


@pytest.mark.data
def test_real_hippocampus(real_data) -> None:
    source = open_source("decathlon", real_data("msd_hippocampus"))
    assert source.task.classes == ("background", "label_1", "label_2")
    assert len(source.scans) == 60
    assert [note.split()[0] for note in source.notes] == ["hippocampus_010", "hippocampus_118"]
    assert {len(file.read().stored) for file in source.scans[:9]} <= set(range(20, 50))


def test_a_process_that_was_killed_before_it_wrote_leaves_a_lock_that_is_removed(tmp_path: Path) -> None:
    for name, age in (("0a1b2c3d", 120), ("4e5f6a7b", 0)):
        part = tmp_path / f".phantom.{name}.part"
        part.mkdir()
        (part / ".lock").touch()
        os.utime(part / ".lock", (time.time() - age,) * 2)
    open_source("phantom(patients=3, slices=1, side=32)", tmp_path / "phantom")
    young = ".phantom.4e5f6a7b.part"  # its process may be about to take the lock
    assert sorted(path.name for path in tmp_path.iterdir()) == [young, "phantom"]


RUNS = {"large_bowel": "1 4 9 2", "small_bowel": "", "stomach": "5\n3"}  # a quoted cell may have lines of its own


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_run_lengths_are_read_where_their_rows_are(tmp_path: Path, ends: str, start: str) -> None:
    table = tmp_path / "train.csv"
    rows = [("scän", "class", "id", "segmentation"), ("ä€", "stomach", "b", "2 2")]
    rows += [("é", name, "a", f'"{text}"') for name, text in RUNS.items()]
    lines = [",".join(row) for row in rows]
    table.write_bytes((start + ends.join([*lines[:3], "", *lines[3:]])).encode())
    runs = read_table(table)
    assert runs.classes("a") == list(RUNS)
    assert runs.classes("b") == ["stomach"]
    assert runs.of(["a", "c"]).runs() == {"a": RUNS}
    assert runs.runs()["b"] == {"stomach": "2 2"}


def reversed_rows(content: bytes) -> bytes:
    head, *rows = content.splitlines()
    return b"\n".join([head, *reversed(rows)])


@pytest.mark.parametrize("change", [reversed_rows, lambda content: content.rstrip() + b" 100 40"])
def test_a_csv_that_was_changed_since_its_rows_were_found_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Also where only the last row is longer, of which the known part would be read."""
    source = open_source("uw_madison", write_uw(tmp_path / "uw"))
    table = tmp_path / "uw" / "train.csv"
    table.write_bytes(change(table.read_bytes()))
    with pytest.raises(InputError, match=r"train.csv as it was .* got one that was changed since; prepare again"):
        [scan.read() for scan in source.scans]


def test_rows_that_are_not_where_they_were_found_are_refused(tmp_path: Path) -> None:
    """A file may be written twice within one tick of its clock."""
    source = open_source("uw_madison", write_uw(tmp_path / "uw"))
    table = tmp_path / "uw" / "train.csv"
    state = table.stat()
    table.write_bytes(reversed_rows(table.read_bytes()).ljust(state.st_size, b"\n"))
    os.utime(table, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(InputError, match=r"expected the row for \w+ of case.* got another; prepare again"):
        source.scans[0].read()


def test_a_listing_holds_no_runs(tmp_path: Path) -> None:
    def bytes_of_listing(runs: str) -> int:
        root = write_uw(tmp_path / f"uw{len(runs)}")

        def lengthen(rows: list[list[str]]) -> None:
            for row in rows[1:]:
                row[2] = runs

        edit_csv(root, lengthen)
        return len(pickle.dumps([scan.read for scan in open_source("uw_madison", root).scans]))

    assert bytes_of_listing("1 1 " * 1000) - bytes_of_listing("1 1") < 500
