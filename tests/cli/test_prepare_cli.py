"""`medattack prepare` on the command line: what it prints, and the sentence for each kind of bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.scans import acdc_paths, edit_csv, first_png, write_acdc, write_decathlon, write_pair, write_uw
from PIL import Image
from typer.testing import CliRunner

from medseg_attack.cli import app
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.errors import InputError


def run(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    result = CliRunner().invoke(app, ["prepare", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_summary_then_the_next_command(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    before = files(root)
    code, stdout, message = run(root, "--format", "uw_madison", "--home", tmp_path / "home")
    out = tmp_path / "home" / "data" / "uw_madison"
    assert code == 0
    first, *lines = stdout.splitlines()
    assert first.endswith(f" in {out}")  # however long
    assert max(map(len, lines)) <= 100
    for word in ("large_bowel", "stomach", "patients", "12 rows x 16 columns", "1.63 x 1.5 mm", "3 mm between"):
        assert word in stdout
    home = tmp_path / "home"
    assert message.splitlines()[-1] == f"Next: medattack train --data {out} --model unet_small --home {home}"
    assert files(root) == before


def test_json_is_json_and_the_same_facts(tmp_path: Path) -> None:
    words = (write_uw(tmp_path / "uw"), "--format", "uw_madison", "--out", tmp_path / "out", "--json")
    code, stdout, _ = run(*words)
    facts = json.loads(stdout)
    assert code == 0
    assert (facts["patients"], facts["scans"], facts["slices"]) == (4, 4, 8)
    assert facts["classes"] == {
        "large_bowel": {"slices": 8, "voxels": 192},
        "small_bowel": {"slices": 0, "voxels": 0},
        "stomach": {"slices": 8, "voxels": 224},
    }
    assert facts["spacing_mm"] == {"through": [3, 3], "row": [1.63, 1.63], "column": [1.5, 1.5]}
    assert sum(part["patients"] for part in facts["splits"].values()) == 4
    before = files(tmp_path / "out")
    code, again, message = run(*words)
    assert (code, json.loads(again)) == (0, facts)
    assert "prepared already" in " ".join(message.split())
    assert files(tmp_path / "out") == before


def test_options_reach_the_data_set(tmp_path: Path) -> None:
    words = ("--size", "8,24", "--window=0,2000", "--folds", 2, "--test", 0.4, "--json")
    code, stdout, _ = run(write_acdc(tmp_path / "acdc"), "--format", "acdc", "--out", tmp_path / "out", *words)
    facts = json.loads(stdout)
    assert code == 0
    assert (facts["rows"], facts["columns"]) == ([8, 8], [24, 24])
    assert set(facts["splits"]) == {"0", "1", "test"}
    assert facts["splits"]["test"]["patients"] == 2


def test_unpaired_files_are_named(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "task", cases=5)
    (root / "imagesTr" / "liver_0.nii.gz").unlink()
    (root / "labelsTr" / "liver_3.nii.gz").unlink()
    code, stdout, message = run(root, "--format", "decathlon", "--out", tmp_path / "out", "--json")
    assert (code, json.loads(stdout)["patients"]) == (0, 3)
    assert "liver_0 is left out: it has a mask but no image" in message
    assert "liver_3 is left out: it has an image but no mask" in message


def test_the_phantom_is_made_where_nothing_is(tmp_path: Path) -> None:
    words = ("--format", "phantom(patients=3, slices=2, side=32)", "--home", tmp_path / "home", "--json")
    code, stdout, _ = run(tmp_path / "phantom", *words)
    facts = json.loads(stdout)
    assert (code, facts["patients"], facts["name"]) == (0, 3, "phantom")
    assert facts["data"] == str(tmp_path / "home" / "data" / "phantom")
    assert (tmp_path / "phantom" / "train.csv").is_file()


def test_kill_9_and_again(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc", patients=40)
    words = [sys.executable, "-m", "medseg_attack", "prepare", root, "--format", "acdc", "--out", tmp_path / "out"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out" / "scans").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    n_done = len(list((tmp_path / "out" / "scans").glob("*.json")))
    assert 0 < n_done < 40
    assert not (tmp_path / "out" / "dataset.json").exists()
    code, _, message = run(root, "--format", "acdc", "--out", tmp_path / "out")
    assert code == 0
    assert f"{n_done} of 40 scans were there already" in message
    run(root, "--format", "acdc", "--out", tmp_path / "undisturbed")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def refused(root: Path, form: str, *messages: str, words: tuple[object, ...] = ()) -> None:
    """Exit code 2, one sentence with all of `messages`, and nothing left behind."""
    out = root.parent / "out"
    code, stdout, error = run(root, "--format", form, "--out", out, "--no-progress", *words)
    assert (code, stdout) == (2, "")
    assert "Traceback" not in error
    sentence = " ".join(error.split())
    assert "error: " in sentence
    for part in (*messages, "expected", "got", ";"):
        assert part in sentence
    assert not out.exists()


@pytest.mark.parametrize("form", ["uw_madison", "acdc", "decathlon"])
def test_missing_empty_or_other_source(tmp_path: Path, form: str) -> None:
    refused(tmp_path / "absent", form, "absent", "nothing there")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", form, "empty", "an empty folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    refused(tmp_path / "other", form, str(tmp_path / "other"))
    refused(tmp_path / "other" / "notes.txt", form, "notes.txt", "a file")


def colour(path: Path) -> None:
    Image.fromarray(np.zeros((12, 16, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: Image.fromarray(np.eye(16, dtype=np.uint8)).save(p), "16-bit greyscale"),
        (colour, "16-bit greyscale"),
        (lambda p: p.write_bytes(p.read_bytes()[:120]), "whole PNG"),
        (lambda p: p.write_bytes(p.read_bytes()[:20]), "PNG"),
        (lambda p: p.write_bytes(b"<html>404</html>"), "not an image"),
        (lambda p: p.write_bytes(b""), "not an image"),
        (lambda p: Image.fromarray(np.eye(15, dtype=np.uint16)).save(p), "slices of one shape"),
        (lambda p: p.rename(p.with_name("slice_1.png")), "names like slice_0001"),
    ],
)
def test_bad_png(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    root = write_uw(tmp_path / "uw")
    spoil(first_png(root))
    refused(root, "uw_madison", message, "case1_day0", "slice_")


@pytest.mark.parametrize(
    ("runs", "message"),
    [("1 2 3", "odd count"), ("1 5 3 2", "overlap"), ("9 1 3 1", "sorted"), ("190 9", "inside"), ("1 x", "whole")],
)
def test_bad_run_lengths(tmp_path: Path, runs: str, message: str) -> None:
    root = write_uw(tmp_path / "uw")
    edit_csv(root, lambda rows: rows[3].__setitem__(2, runs))
    refused(root, "uw_madison", "train.csv", "case1_day0_slice_0001", "stomach", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].__setitem__(2, "mask"), "segmentation"),
        (lambda rows: rows.clear(), "columns id, class, segmentation"),
        (lambda rows: rows[1].__setitem__(1, "stomac"), "did you mean stomach?"),
        (lambda rows: rows[1].__setitem__(0, "case9_day9_slice_0001"), "case9_day9_slice_0001"),
        (lambda rows: rows.append(rows[1]), "one row for large_bowel of case1_day0_slice_0001"),
        (lambda rows: rows.pop(1), "large_bowel, small_bowel, stomach"),
        (lambda rows: rows.__delitem__(slice(1, 4)), "slice_0001_16_12"),
    ],
)
def test_bad_csv(tmp_path: Path, change: Callable[[list[list[str]]], None], message: str) -> None:
    root = write_uw(tmp_path / "uw")
    edit_csv(root, change)
    refused(root, "uw_madison", "train.csv", message)


def test_missing_csv(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    (root / "train.csv").unlink()
    refused(root, "uw_madison", "train.csv")


def test_unknown_label_values(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    write_pair(*acdc_paths(root), mask=np.full((8, 10, 5), 7))
    refused(root, "acdc", "patient001_frame01_gt.nii.gz", "0, 1, 2, 3", "got 7")


def test_mask_of_another_shape(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    write_pair(*acdc_paths(root), mask=np.zeros((8, 10, 6)))
    refused(root, "acdc", "patient001_frame01_gt.nii.gz", "(8, 10, 5)", "(8, 10, 6)")


def test_mask_of_another_affine(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    write_pair(*acdc_paths(root), mask_affine=np.diag((-1.0, 1.0, 4.0, 1.0)))
    refused(root, "acdc", "patient001_frame01_gt.nii.gz", "14 mm apart")


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (None, "3.0 in every voxel")]
)
def test_nan_or_constant_image(tmp_path: Path, value: float | None, message: str) -> None:
    root = write_acdc(tmp_path / "acdc")
    image = np.full((8, 10, 5), 3, dtype=np.float32)
    if value is not None:
        image[0, 0, 0] = value
    write_pair(*acdc_paths(root, 2), image=image)
    refused(root, "acdc", "patient002_frame01.nii.gz", message)


def test_constant_png_scan(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw", slices=1)
    Image.fromarray(np.zeros((12, 16), dtype=np.uint16)).save(first_png(root))
    refused(root, "uw_madison", "case1_day0", "every voxel")


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("packed", [True, False])
def test_nifti_cut_off_in_the_middle(tmp_path: Path, part: int, packed: bool) -> None:
    root = write_acdc(tmp_path / "acdc")
    path = acdc_paths(root, 3)[part]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if packed else gzip.compress(gzip.decompress(whole)[:500]))
    refused(root, "acdc", path.name, "whole NIfTI")


def test_what_is_not_nifti(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    acdc_paths(root)[0].write_bytes(b"<html>404</html>")
    refused(root, "acdc", "patient001_frame01.nii.gz")


def test_four_dimensions(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    write_pair(*acdc_paths(root), image=np.zeros((8, 10, 5, 2), dtype=np.float32))
    refused(root, "acdc", "patient001_frame01.nii.gz", "one channel")


def test_too_few_patients(tmp_path: Path) -> None:
    refused(write_acdc(tmp_path / "acdc", patients=2), "acdc", "at least 3 patients", "patient001, patient002")


def test_one_patient_is_enough_for_a_network_that_is_trained_already(tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = write_acdc(tmp_path / "acdc", patients=1)
    code, stdout, message = run(root, "--format", "acdc", "--out", out, "--test", 1, "--json", "--no-progress")
    assert code == 0
    assert "attack --data" in message
    assert list(json.loads(stdout)["splits"]) == ["test"]
    data = open_prepared(out)
    assert data.refs("test") == data.refs("all") != ()
    with pytest.raises(InputError, match="all are held out; prepare it with less than --test 1"):
        data.refs("train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "224"), "--size"),
        (("--size", "0,5"), "--size"),
        (("--window", "brightest"), "--window"),
        (("--test", "1.1"), "--test"),
        (("--folds", "1"), "--folds"),
    ],
)
def test_bad_options(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    refused(write_acdc(tmp_path / "acdc"), "acdc", message, words=words)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("adcd", "did you mean acdc?"),
        ("uw_madison(dropp='none')", "did you mean drop?"),
        ("uw_madison(drop='papers')", "did you mean paper?"),
        ("phantom(patients=2)", "expected patients >= 3, got 2"),
    ],
)
def test_bad_format(tmp_path: Path, form: str, message: str) -> None:
    code, stdout, error = run(write_acdc(tmp_path / "acdc"), "--format", form, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_configuration_is_left_as_it_was(tmp_path: Path) -> None:
    words = (write_acdc(tmp_path / "acdc"), "--format", "acdc", "--out", tmp_path / "out")
    run(*words)
    before = files(tmp_path / "out")
    code, _, error = run(*words, "--seed", 3)
    assert code == 2
    assert "seed: there 0, here 3" in " ".join(error.split())
    assert files(tmp_path / "out") == before


def test_bad_input_does_not_cost_what_a_killed_run_had_finished(tmp_path: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    run(root, "--format", "acdc", "--out", tmp_path / "out")
    acdc_paths(root, 4)[0].write_bytes(b"")
    assert run(root, "--format", "acdc", "--out", tmp_path / "out")[0] == 2
    assert (tmp_path / "out" / "scans" / "patient001_frame01.json").exists()
