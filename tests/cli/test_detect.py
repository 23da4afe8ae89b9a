"""`medattack detect`: a detector with a rate of false alarms, or none at all; and an attack that knows it."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command import medattack, next_words
from helpers.pages import chart_points, nan, page_of, section, tables

from medseg_attack import registry
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.orthogonal import Orthogonal
from medseg_attack.errors import InputError
from medseg_attack.evaluation.detection.evaders import evaders
from medseg_attack.evaluation.detection.scoring import Detection, control_key
from medseg_attack.evaluation.detection.screening import scan_scores
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.report.sheet import between, number, percent
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import read_header

PHANTOM = "phantom(patients=16, slices=2, side=32)"
MODEL = "unet_small(channels=(4, 8))"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and runs of an attack on its test patients."""
    root = tmp_path_factory.mktemp("detect")
    words = ("--format", PHANTOM, "--test", "0.25", "--folds", "2", "--out", root / "data/p")
    medattack("prepare", root / "scans", *words)
    train = ("train", "--data", root / "data/p", "--model", "unet_small(channels=(4, 8))", "--epochs", "4")
    medattack(*train, "--lr", "1e-2", "--home", root, "--out", root / "models/m")
    attack = ("attack", "--data", root / "data/p", "--model", root / "models/m", "--no-checks", "--home", root)
    medattack(*attack, "--attack", "pgd(steps=4)", "--eps", "16/255", "--out", root / "runs/a")
    medattack(*attack, "--attack", "fgsm", "--eps", "16/255", "--save-adversarial", "all", "--out", root / "runs/b")
    return root


@pytest.fixture(scope="module")
def content(home: Path) -> Any:
    words = ("detect", home / "runs", "--detector", "feature_squeezing", "--weight", "1", "--home", home, "--seed", "0")
    return json.loads(medattack(*words, "--csv", home / "scores.csv", "--json").stdout)


def test_each_attack_stands_beside_clean_images_noise_and_one_that_knows_the_detector(content: Any) -> None:
    (detector,) = content["detectors"]
    assert detector["adaptive"]
    assert (detector["model"], detector["data"], detector["partial"]) == (MODEL, "phantom", False)
    kinds = [(row["kind"], row["attack"]) for row in detector["rows"]]
    assert kinds == [
        ("clean", "clean"),
        ("noise", "noise"),
        ("attack", "pgd(steps=4)"),
        ("attack", "fgsm"),
        ("adaptive", "evading(pgd(steps=4))"),
        ("adaptive", "evading(pgd)"),  # one step cannot go around an alarm
    ]
    assert detector["calibration_patients"] == 6
    assert detector["two_sided_rate"] == 2 / 7
    assert all("alarms_two_sided" in row for row in detector["rows"])
    clean = detector["rows"][0]
    assert clean["alarms_0.1"] is None
    assert clean["alarms_0.14_low"] <= clean["alarms_0.14"] <= clean["alarms_0.14_high"]


def test_the_next_commands_can_be_typed(home: Path, tmp_path: Path) -> None:
    detected = medattack("detect", home / "runs", "--non-adaptive", "--home", home, "--out", tmp_path)
    program, command, scans, *words = next_words(detected)
    assert (program, command, scans) == ("medattack", "screen", "YOUR_SCANS")
    assert words[4:6] == ["--false-alarms", "0.143"]  # six patients cannot promise less
    words += ["--json"]
    screened = json.loads(medattack(command, home / "data/p", *words, code=1).stdout)
    assert len(screened["scans"]) > 16  # several of a patient
    program, *words = next_words(medattack("compare", home / "runs"))
    assert (program, *words) == ("medattack", "report", str(home / "runs"))
    medattack(*words, "--worst", "0", "--out", tmp_path / "page")


def test_the_page_has_the_numbers_of_the_detector(content: Any, home: Path, tmp_path: Path) -> None:
    (detector,) = content["detectors"]
    page = page_of(tmp_path, home / "runs", home / "detectors")
    text = section(page, "detectors")
    (points,) = chart_points(page)
    assert [point["share"] for point in points] == [row["alarms_0.14"] for row in detector["rows"]]
    ((_, *lines),) = tables(text)
    assert len(lines) == len(detector["rows"])
    for line, row in zip(lines, detector["rows"], strict=True):
        assert line[:2] == [row["attack"], row["eps"]]
        if row["kind"] != "clean":
            assert line[2:4] == [number(row["auroc"], 2), between(row["low"], row["high"])]
        rates = [name for name in row if re.fullmatch(r"alarms_[\d.]+", name)]
        assert line[5 : 5 + len(rates)] == [percent(nan(row[rate])) for rate in rates]
        assert line[5 + len(rates)] == number(row["dice"], 2)
        if row["kind"] in ("attack", "adaptive"):
            shares = [percent(nan(row["noticed"])), percent(row["missed"]), number(row["risk"], 2)]
            assert line[-4:] == [f"{row['harmed']:.0f}/{row['patients']}", *shares]
    assert f'<p class="result">{detector["verdict"]}</p>' in text


def test_scores_of_every_patient_are_written(content: Any, home: Path) -> None:
    with (home / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(content["detectors"][0]["rows"])
    assert all(0 < float(row["p"]) <= 1 for row in rows)
    assert {(row["detector"], row["model"]) for row in rows} == {("feature_squeezing", MODEL)}


def test_an_attack_that_knows_the_detector_raises_no_alarm_on_those_who_had_none(content: Any, home: Path) -> None:
    """What is scored is rounded as in a file: an attack that looked at other numbers would raise some."""
    assert content["detectors"][0]["calibration_patients"] == 6
    with (home / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    least = 1 / 7 + 1e-9
    calm = {row["group"] for row in rows if row["kind"] == "clean" and float(row["p"]) > least}
    evading = [float(row["p"]) for row in rows if row["kind"] == "adaptive" and row["group"] in calm]
    assert len(evading) >= 2
    assert min(evading) > least


def test_stored_images_and_images_that_are_made_again_have_the_scores_of_the_run(content: Any, home: Path) -> None:
    """The Dice of what a detector was shown is that of the run's own rows."""
    from medseg_attack.runs.reading import find_runs, read_runs
    from medseg_attack.stats.scores import pooled, scored

    rows = read_runs(find_runs([home / "runs"]))
    cases = scored(pooled(rows, "patient"), "one").merge(
        rows.drop_duplicates("run")[["run", "attack", "role"]], on="run"
    )
    for label in ("pgd(steps=4)", "fgsm"):
        own = cases[(cases["attack"] == label)].groupby("group")["dice_adv"].mean().mean()
        (row,) = [row for row in content["detectors"][0]["rows"] if row["attack"] == label]
        assert row["dice"] == pytest.approx(own, abs=1e-6)


def test_the_table_fits_and_says_what_is_not_promised(home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, "--non-adaptive")
    plain = " ".join(result.stdout.split())
    assert f"entropy (non_adaptive) of {MODEL} on phantom" in plain
    assert f"entropy of {MODEL}: " in plain
    assert "PARTIAL" not in plain
    assert "With fewer than 19 of them 5 % cannot be promised: the least is 14 %." in plain
    assert "non_adaptive: no attack of the table knows the detector." in plain
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_attacks_that_differ_in_what_they_want_are_told_apart_and_summed_up_by_goal(home: Path, tmp_path: Path) -> None:
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    goals = ("--loss", "bce", "--loss", "toward(bce, erase)", "--loss", "toward(bce, shrink)")
    medattack(*attack, "--attack", "pgd(steps=2)", "--eps", "16/255", *goals, "--no-control", "--out", home / "goals")
    words = ("detect", home / "goals", "--home", home, "--knowing", "orthogonal(share=0.3)")
    (detector,) = json.loads(medattack(*words, "--json").stdout)["detectors"]
    known = [(row["kind"], row["loss"], row["goal"]) for row in detector["rows"][2:]]
    each = [("bce", ""), ("toward", "erase"), ("toward(goal=shrink)", "shrink")]
    assert known == [(kind, *pair) for kind in ("attack", "adaptive") for pair in each]
    assert {row["attack"] for row in detector["rows"][5:]} == {"orthogonal(pgd(steps=2), share=0.3)"}
    plain = " ".join(medattack(*words).stdout.split())
    assert f"entropy of {MODEL} on phantom, by goal" in plain
    page = section(page_of(tmp_path, home / "goals", home / "detectors"), "detectors")
    assert "<summary>By goal</summary>" in page
    rows = [" ".join(row[:2]) for table in tables(page) for row in table]
    for start in ("any but the truth 1", "erase 1", "shrink 1"):
        assert start in plain
        assert start in rows


def test_what_knows_a_detector_is_an_attack_that_evades_one(home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, "--knowing", "pgd", code=2)
    names = "evading, feature_matching, hfc, orthogonal, selective"
    sentence = f"expected an attack that knows a detector for --knowing, one of {names}, got pgd"
    assert sentence in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--knowing", "orthogonal", "--weight", "1"), "expected --weight beside a way of --knowing"),
        (("--knowing", "evading(weight=3)", "--weight", "1"), "expected --weight beside a way of --knowing"),
        (("--knowing", "orthogonal", "--non-adaptive"), "expected --knowing without --non-adaptive, got both"),
        (("--weight", "1", "--non-adaptive"), "expected --weight without --non-adaptive, got both"),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(words: tuple[str, ...], sentence: str, home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, *words, code=2)
    assert sentence in " ".join(result.stderr.split())


def test_a_weight_is_for_the_ways_that_have_one() -> None:
    swept, own, turns = evaders(("evading", "evading(weight=3)", "orthogonal"), (0.5, 2.0))
    assert (swept, own) == (Evading(weight=(0.5, 2.0)), Evading(weight=3))
    assert turns == Orthogonal()


def test_what_cannot_know_a_detector_is_refused_before_anything_is_computed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*words, "--attack", "uap(epochs=1)", "--eps", "4/255", "--no-control", "--out", tmp_path / "uap")
    monkeypatch.setattr(Detection, "fit", None)
    result = medattack("detect", tmp_path / "uap", "--home", home, "--knowing", "hfc", code=2)
    assert "expected an attack that needs no fit for hfc" in " ".join(result.stderr.split())


def test_a_rate_that_the_patients_cannot_promise_is_refused(home: Path) -> None:
    result = medattack("detect", home / "runs/a", "--home", home, "--false-alarms", "0.05", code=2)
    assert "expected 19 calibration patients or more for 0.05 false alarms, got 6" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["data/p", "scans"])
def test_a_folder_in_the_data_is_refused_before_anything_is_scored(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detection, "fit", None)
    result = medattack("detect", home / "runs/a", "--home", home, "--out", home / name / "detectors", code=2)
    assert "to write to, got" in " ".join(result.stderr.split())
    assert not (home / name / "detectors").exists()


def test_patients_whom_the_detector_learned_from_are_no_test(home: Path) -> None:
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--split", "val", "--limit", "4", "--out", home / "elsewhere")
    result = medattack("detect", home / "elsewhere", "--home", home, code=2)
    assert "expected a detector to be scored on other patients than it is fitted and calibrated on" in " ".join(
        result.stderr.split()
    )


def test_a_part_of_a_patient_is_no_patient(home: Path) -> None:
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--limit", "1", "--out", home / "part")
    result = medattack("detect", home / "part", "--home", home, code=2)
    assert "expected runs of all slices of a patient in" in " ".join(result.stderr.split())


def test_the_table_of_runs_of_some_of_the_cases_says_so(home: Path) -> None:
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--limit", "0.95", "--no-control", "--out", home / "most")
    words = ("detect", home / "most", "--home", home, "--non-adaptive", "--out", home / "partial")
    assert "PARTIAL: --limit left cases out." in " ".join(medattack(*words).stdout.split())
    twice = ("--detector", "entropy", "--detector", "entropy()")
    (detector,) = json.loads(medattack(*words, *twice, "--json").stdout)["detectors"]
    assert detector["partial"]


def test_runs_of_two_models_are_refused(home: Path) -> None:
    train = (
        "train",
        "--data",
        home / "data/p",
        "--model",
        "unet_small(channels=(4, 8))",
        "--epochs",
        "1",
        "--seed",
        "1",
    )
    medattack(*train, "--home", home, "--out", home / "models/other")
    attack = ("attack", "--data", home / "data/p", "--model", home / "models/other", "--no-checks", "--home", home)
    medattack(*attack, "--attack", "fgsm", "--limit", "4", "--out", home / "another")
    result = medattack("detect", home / "runs/a", home / "another", "--home", home, code=2)
    assert "expected runs of one model for a detector, got several" in " ".join(result.stderr.split())
    result = medattack("detect", home / "models", "--home", home, code=2)
    assert "expected a run in" in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def file(content: Any) -> Path:
    """The detector that was written."""
    return Path(content["detectors"][0]["file"])


@pytest.fixture(scope="module")
def incoming(home: Path) -> Path:
    """A folder of new scans: two as they are, one of black and white pixels."""
    import nibabel
    import numpy as np

    from medseg_attack.data.prepared.reading import open_prepared

    folder = home / "incoming"
    (folder / "today").mkdir(parents=True)
    data = open_prepared(home / "data/p")
    for n, scan in enumerate(data.scans[:3]):
        values = data.stored(scan)[0].astype(np.float32)
        if n == 2:
            values = values.max() * np.random.default_rng(0).integers(0, 2, values.shape).astype(np.float32)
        image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1.0, -1.0, 3.0, 1.0]))
        nibabel.save(image, folder / f"today/scan{n}.nii.gz")
    return folder


def test_new_scans_get_a_p_value_each_and_an_alarm_its_reason(home: Path, file: Path, incoming: Path) -> None:
    before = sorted(incoming.rglob("*"))
    words = ("screen", incoming, "--detector", file, "--model", home / "models/m", "--home", home)
    result = medattack(*words, "--false-alarms", "0.2", "--csv", home / "screen.csv", code=1)
    plain = " ".join(result.stdout.split())
    assert "today_scan2 ALARM: an answer that changes when the scan is simplified, most in" in plain
    assert "1 alarm of 3 scans." in plain
    content = json.loads(medattack(*words, "--false-alarms", "0.2", "--json", code=1).stdout)
    assert [scan["alarm"] for scan in content["scans"]] == [False, False, True]
    assert [scan["p"] for scan in content["scans"]][2] == pytest.approx(1 / 7)
    with (home / "screen.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == 3
    assert sorted(incoming.rglob("*")) == before
    (incoming / "today/scan2.nii.gz").rename(home / "aside.nii.gz")
    medattack(*words, "--false-alarms", "0.2")
    (home / "aside.nii.gz").rename(incoming / "today/scan2.nii.gz")


def test_the_scores_are_shown_where_their_file_cannot_be_written(
    home: Path, file: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: pd.DataFrame, csv: Path) -> None:
        raise InputError("expected room on the disk, got none; free some")

    monkeypatch.setattr("medseg_attack.report.sheet.write_csv", full)
    words = ("screen", incoming, "--detector", file, "--model", home / "models/m", "--home", home)
    result = medattack(*words, "--false-alarms", "0.2", "--csv", home / "unwritten.csv", code=2)
    assert "1 alarm of 3 scans." in " ".join(result.stdout.split())


def test_a_scan_that_cannot_be_read_is_left_out_of_a_screening(
    home: Path, file: Path, incoming: Path, tmp_path: Path
) -> None:
    incoming = shutil.copytree(incoming, tmp_path / "incoming")
    words = ("screen", incoming, "--detector", file, "--model", home / "models/m", "--home", home)
    words += ("--false-alarms", "0.2")
    broken = incoming / "today/broken.nii.gz"
    broken.write_bytes((incoming / "today/scan0.nii.gz").read_bytes()[:500])
    said = " ".join(medattack(*words, code=2).stderr.split())
    assert said.endswith("; --leave-out today_broken goes on without it")
    result = medattack(*words, "--leave-out", "today_broken", "--leave-out", "today/scan2*")
    assert "0 alarms of 2 scans." in " ".join(result.stdout.split())
    assert "note: --leave-out today_broken leaves out today_broken" in " ".join(result.stderr.split())
    assert "no scan has" not in result.stderr  # of new scans no mask is expected
    for name, sentence in (("*", "that is not left out, got none"), ("today_brokn", "did you mean today_broken")):
        said = medattack(*words, "--leave-out", "today_broken", "--leave-out", name, code=2).stderr
        assert sentence in " ".join(said.split())
    prepared = (words[0], home / "data/p", *words[2:], "--json")
    every = json.loads(medattack(*prepared, code=1).stdout)["scans"]
    name = every[0]["scan"]
    kept = json.loads(medattack(*prepared, "--leave-out", name, code=1).stdout)["scans"]
    assert [scan["scan"] for scan in kept] == [scan["scan"] for scan in every[1:]]
    said = medattack(*prepared, "--leave-out", f"{name}x", code=2).stderr
    assert f"did you mean {name}" in " ".join(said.split())


def test_a_scan_that_is_screened_has_the_score_that_it_has_as_a_prepared_one(
    home: Path, file: Path, incoming: Path
) -> None:
    words = ("--detector", file, "--model", home / "models/m", "--home", home, "--false-alarms", "0.2", "--json")
    new = json.loads(medattack("screen", incoming, *words, code=1).stdout)["scans"]
    old = json.loads(medattack("screen", home / "data/p", *words, code=1).stdout)["scans"]
    from medseg_attack.data.prepared.reading import open_prepared

    by_name = {scan["scan"]: scan for scan in old}
    for scan, name in zip(new[:2], open_prepared(home / "data/p").scans, strict=False):
        assert scan["score"] == pytest.approx(by_name[name]["score"], rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["no scans", "another size", "another model", "other classes", "changed", "no detector", "a rate"]
)
def test_what_cannot_be_screened_is_refused(kind: str, home: Path, file: Path, incoming: Path, tmp_path: Path) -> None:
    from medseg_attack.detectors.files import load_detector, save_detector

    detector, model, scans, rate = file, home / "models/m", incoming, "0.2"
    match kind:
        case "no scans":
            scans = tmp_path / "empty"
            scans.mkdir()
            (scans / "notes.txt").write_text("hello")
            sentence = "expected NIfTI files, DICOM series or pictures in"
        case "another size":
            scans = tmp_path / "small"
            medattack("prepare", home / "scans", "--format", PHANTOM, "--size", "16,16", "--out", scans)
            sentence = (
                "expected scans prepared as those that the detector was calibrated on (size: there none, here [16, 16])"
            )
        case "another model":
            words = ("train", "--data", home / "data/p", "--model", "unet_small(channels=(4, 4))", "--epochs", "1")
            medattack(*words, "--home", home, "--out", tmp_path / "other")
            model, sentence = tmp_path / "other", "expected a detector of the model at hand"
        case "other classes":
            saved = load_detector(file)
            facts = {key: value for key, value in saved.facts.items() if key not in ("version", "detector", "level")}
            facts["task"] = {**facts["task"], "classes": ["liver"]}
            detector = tmp_path / "liver.safetensors"
            save_detector(detector, saved.calibrated, facts)
            sentence = "expected a detector of the classes large_bowel, small_bowel, stomach, got"
        case "changed":
            detector = tmp_path / "changed.safetensors"
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            detector.write_bytes(content)
            sentence = "expected the detector that was written to"
        case "no detector":
            detector, sentence = home / "models/m/weights.safetensors", "expected a detector in"
        case "a rate":
            rate, sentence = "0.05", "expected 19 calibration patients or more for 0.05 false alarms, got 6"
    words = ("screen", scans, "--detector", detector, "--model", model, "--home", home, "--false-alarms", rate)
    result = medattack(*words, code=2)
    assert sentence in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_scan_without_an_answer_is_named(file: Path, home: Path) -> None:
    """Its score is no number, which no other one is above: it would have passed as the least suspicious scan."""
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.detectors.files import load_detector

    data, calibrated = open_prepared(home / "data/p"), load_detector(file).calibrated
    batch = data.batch([ref.id for ref in data.refs("test")[:2]])
    model = SegModel(torch.nn.Conv2d(1, 3, 1), data.task)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    names = ", ".join(case.id for case in batch.cases)
    with frozen(model), pytest.raises(InputError, match=f"expected a score of {names}, got nan"):
        scan_scores(calibrated, model, [batch])


def test_an_attack_is_run_on_a_detector_of_its_model_alone(home: Path, file: Path, tmp_path: Path) -> None:
    words = ("attack", "--data", home / "data/p", "--no-checks", "--home", home, "--limit", "2", "--eps", "8/255")
    attack = ("--attack", f"evading(attack=pgd(steps=2), detector=saved({str(file)!r}), weight=1)")
    medattack(*words, *attack, "--model", home / "models/m", "--out", tmp_path / "run")
    other = ("train", "--data", home / "data/p", "--model", "unet_small(channels=(4, 4))", "--epochs", "1")
    medattack(*other, "--home", home, "--out", tmp_path / "other")
    result = medattack(*words, *attack, "--model", tmp_path / "other", "--out", tmp_path / "no", code=2)
    assert "expected a detector of the model at hand" in " ".join(result.stderr.split())
    wrong = attack[1].replace(repr(str(file)), f"{str(file)!r}, fingerprint='abc'")
    result = medattack(*words, "--attack", wrong, "--model", home / "models/m", code=2)
    assert "expected the detector abc in" in " ".join(result.stderr.split())


def test_the_dice_of_an_edit_is_of_the_truth_that_it_shows(home: Path, tmp_path: Path) -> None:
    """An organ that is painted over is not there any more: that it is not drawn is no harm."""
    words = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*words, "--attack", "remove", "--eps", "1", "--out", tmp_path / "run")
    todo = Detection.open(registry.build("entropy", "detector"), [tmp_path / "run"], torch.device("cpu"), evaders=())
    scores = todo.score(todo.fit())
    truths = {kind: torch.tensor(of["pixels"].tolist())[..., 0] for kind, of in scores.groupby("kind")}
    assert truths["clean"].sum() > 0
    assert truths["attack"].sum() == 0


def test_answers_on_clean_images_and_noise_are_kept_for_other_runs_and_change_none(home: Path, tmp_path: Path) -> None:
    words = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*words, "--attack", "fgsm", "--eps", "4/255", "--save-adversarial", "all", "--out", tmp_path / "weak")
    kept: dict[Any, Any] = {}
    first, second = (
        Detection.open(registry.build("entropy", "detector"), [run], torch.device("cpu"), evaders=(), answers=kept)
        for run in (home / "runs/b", tmp_path / "weak")
    )
    n_batches = len(first._batches(first.test_refs))
    for n_detectors, name in enumerate(("entropy", "mgm"), 1):
        detector = replace(first, detector=registry.build(name, "detector")).fit()
        for detection in (first, second, first):
            pd.testing.assert_frame_equal(detection.score(detector), replace(detection, answers={}).score(detector))
        assert len(kept) == n_detectors * 3 * n_batches  # clean images, and noise of each size


def test_the_control_of_a_field_is_a_random_field_as_in_the_table_of_attacks(home: Path, tmp_path: Path) -> None:
    words = ("attack", "--data", home / "data/p", "--model", home / "models/m", "--no-checks", "--home", home)
    medattack(*words, "--attack", "bias_field(steps=2)", "--eps", "0.3", "--out", tmp_path)
    (control,) = (each for each in find_runs([tmp_path]) if read_header(each)["role"] == "control")
    todo = Detection.open(registry.build("entropy", "detector"), [tmp_path], torch.device("cpu"), evaders=())
    assert [each.label for each in todo.exposures] == ["clean", "noise bias_field(steps=2)", "bias_field(steps=2)"]
    noise, attack = todo.exposures[1:]
    assert control_key(noise) == control_key(attack) == "bias_field(steps=0) "
    scores = todo.score(todo.fit())
    assert scores[scores["kind"] == "attack"]["noise"].unique().tolist() == [1]
    rows = RunFolder(control).rows()
    n_adv = torch.tensor(scores[scores["kind"] == "noise"]["pixels"].tolist())[..., 1]
    expected = rows.pivot_table(index="case", columns="cls", values="n_adv", sort=False)
    assert n_adv.tolist() == expected.loc[scores[scores["kind"] == "noise"]["case"]].to_numpy().tolist()
