"""`medattack evaluate`: flags below the table of scores, and rows of another batch size."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.bright import write_bright
from helpers.command import medattack


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three prepared scans and a file of networks."""
    home = tmp_path_factory.mktemp("evaluate")
    write_bright(home / "scans")
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "1")
    return home


def evaluate(home: Path, net: str, *more: Any, code: int = 0) -> Any:
    words = ["evaluate", "--home", home, "--model", f"own('{home}/scans/nets.py:{net}')", "--metric", "hd95_mm"]
    return medattack(*words, *more, code=code)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("net", "code"), [("OfBatch", "MA004"), ("Sigmoid", "MA005")])
def test_what_is_wrong_with_a_model_stands_below_its_clean_scores(home: Path, net: str, code: str) -> None:
    assert f"{code} invalid" in one_line(evaluate(home, net).stdout)
    content = json.loads(evaluate(home, net, "--json").stdout)
    (flag,) = [flag for flag in content["flags"] if flag["code"] == code]
    assert flag["runs"] == [f"{flag['model_id']}/00_clean"]


def test_a_sound_model_has_no_grave_flag_and_is_not_asked_for_gradients(home: Path) -> None:
    flags = json.loads(evaluate(home, "Net", "--json").stdout)["flags"]
    assert {flag["verdict"] for flag in flags} == {"note"}
    assert "MA022" not in evaluate(home, "NanGradient").stdout  # no score of clean images depends on it


def test_scores_of_another_batch_size_are_not_shown_where_answers_depend_on_it(home: Path, tmp_path: Path) -> None:
    def dice(batch_size: int, out: str) -> float:
        result = evaluate(home, "OfBatch", "--batch-size", batch_size, "--out", tmp_path / out, "--json")
        return float(json.loads(result.stdout)["scores"][0]["dice"])

    single = dice(1, "single")
    refused = evaluate(home, "OfBatch", "--batch-size", 16, "--out", tmp_path / "single", code=2)
    assert "expected --batch-size 1, with which" in one_line(refused.stderr)
    assert "(MA004); use that batch size, or another --out" in one_line(refused.stderr)
    assert dice(1, "single") == single != dice(16, "many")


def test_scores_of_another_batch_size_are_shown_where_nothing_depends_on_it(home: Path, tmp_path: Path) -> None:
    for batch_size in (1, 16):
        evaluate(home, "Net", "--batch-size", batch_size, "--out", tmp_path / "out")
    (header,) = (tmp_path / "out").rglob("run.json")
    assert json.loads(header.read_text())["batch_size"] == 1  # by which it was computed


def test_a_limit_takes_whole_scans_where_scans_are_measured(home: Path, tmp_path: Path) -> None:
    words = ["--data", home / "data" / "decathlon", "--home", home, "--model", f"own('{home}/scans/nets.py:Net')"]
    words += ["--metric", "hd95_mm", "--limit", 3, "--json"]
    attacked = medattack("attack", *words, "--eps", "0.45", "--out", tmp_path / "attack")
    assert "note: --limit 3 takes 1 whole scan (5 slices), which --metric measures" in one_line(attacked.stderr)
    assert all(run["adv_hd95_mm"] is not None for run in json.loads(attacked.stdout)["runs"])
    evaluated = medattack("evaluate", *words, "--out", tmp_path / "evaluate")
    assert "takes 1 whole scan" in evaluated.stderr
    assert all(score["hd95_mm"] is not None for score in json.loads(evaluated.stdout)["scores"])
    plain = medattack("attack", *words[:-5], "--limit", 3, "--eps", "0.45", "--out", tmp_path / "slices")
    assert "whole scan" not in plain.stderr
    (header, _) = (tmp_path / "slices").rglob("run.json")
    assert json.loads(header.read_text())["cases"] == 3


@pytest.mark.parametrize("command", ["attack", "evaluate"])
def test_a_limit_between_two_numbers_of_cases_is_refused(home: Path, command: str) -> None:
    words = ["--home", home, "--model", f"own('{home}/scans/nets.py:Net')", "--limit", 1.5]
    said = one_line(medattack(command, *words, code=2).stderr)
    assert "a whole number of cases or a share below 1, got 1.5; write 1 or 2" in said


def test_a_plan_refuses_what_the_run_refuses(home: Path) -> None:
    words = ["--home", home, "--model", f"own('{home}/scans/nets.py:Net')"]
    for more in (["--metric", "hd59"], ["--eps", "0.001"], ["--region", "outside:spleen"]):
        plan = medattack("attack", *words, *more, "--plan", code=2).stderr
        assert plan.splitlines()[-1] == medattack("attack", *words, *more, code=2).stderr.splitlines()[-1]


def test_the_table_of_attacks_shows_measures_and_units(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "--model", f"own('{home}/scans/nets.py:Net')", "--eps", "0.45"]
    words += ["--attack", "fgsm", "--attack", "bias_field(steps=1)", "--no-control", "--no-checks"]
    shown = medattack(*words, "--metric", "hd95_mm", "--out", tmp_path / "measured").stdout
    assert "hd95_mm: means over whole scans." in one_line(shown)
    assert one_line(shown).count("eps: of bias_field(steps=1) in field strength.") == 1
    clean, fgsm = (
        next(line for line in shown.splitlines() if line.split()[:1] == [name]) for name in ("clean", "fgsm")
    )
    assert clean.split()[-1] == "0.000"
    assert "0.000" != fgsm.split()[-4] != "-"
    assert "hd95" not in medattack(*words, "--out", tmp_path / "plain").stdout


def test_doctor_flags_a_model_that_finds_nothing(home: Path) -> None:
    words = ["--home", home, "--model", f"own('{home}/scans/nets.py:Blind')"]
    assert "MA014 invalid - clean images" in one_line(medattack("doctor", *words, code=1).stdout)
    sound = medattack("doctor", "--home", home, "--model", f"own('{home}/scans/nets.py:Net')").stdout
    assert "MA014" not in sound


def test_stored_images_have_a_row_for_each_organ_and_run_named_as_the_run_is_and_a_mean(
    home: Path, tmp_path: Path
) -> None:
    words = ["--home", home, "--model", f"own('{home}/scans/nets.py:Net')"]
    attack = ["attack", *words, "--attack", "fgsm", "--eps", "0.1", "--eps", "0.45", "--no-control", "--no-checks"]
    medattack(*attack, "--save-adversarial", "worst:1", "--out", tmp_path / "run")
    names = sorted(file.parent.name for file in (tmp_path / "run").rglob("config.json") if "fgsm" in file.parent.name)
    shown = evaluate(home, "Net", "--images", tmp_path / "run", "--out", tmp_path / "scores").stdout
    body = shown.rpartition("──")[2].partition("Dice and IoU")[0]
    heads = [line.split()[0] for line in body.splitlines() if line.strip()]
    assert len(names) == 2
    assert heads == [names[0], "mean", names[1], "mean"]
    assert "on scans: stored images" in one_line(shown)
    assert "run=" not in shown


def test_scores_of_stored_images_are_those_of_all_cases_whatever_was_saved(home: Path, tmp_path: Path) -> None:
    words = ["--home", home, "--model", f"own('{home}/scans/nets.py:Net')", "--eps", "0.45", "--no-control"]
    attacked = medattack("attack", *words, "--save-adversarial", "worst:1", "--out", tmp_path / "run", "--json")
    replayed = evaluate(home, "Net", "--images", tmp_path / "run", "--out", tmp_path / "scores", "--json")
    (run,), (score,) = json.loads(attacked.stdout)["runs"], json.loads(replayed.stdout)["scores"]
    assert (score["cases"], score["dice"]) == (3, pytest.approx(run["organ_adv"]))
