"""Promptable models from the command line: prompts are of the case and the pass, whatever the batch or the part."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.promptable import NETWORKS, write_promptable

from medseg_attack.report.page.sections import results
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.stored_files import read_header

COUNTS = ["attack", "case", "n_target", "n_clean", "hit_clean", "n_adv", "hit_adv"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("promptable")
    write_bright(root / "scans")
    medattack("prepare", root / "scans", "--format", "decathlon", "--test", "1", "--out", root / "data")
    write_promptable(root)
    return root


def attack(place: Path, out: Path, options: str, *words: object, net: str = "Box", code: int = 0) -> str:
    """What is printed, in one line."""
    model = f"own({str(place / 'promptable.py') + ':' + net!r}{options and ', '}{options})"
    words = ("--data", place / "data", "--model", model, *words, "--trust", "--home", place / "home", "--out", out)
    result = medattack("attack", *words, code=code)
    return " ".join((result.stdout if code == 0 else result.stderr).split())


def rows(out: Path) -> pd.DataFrame:
    return read_runs([out]).sort_values(["attack", "case"])[COUNTS].reset_index(drop=True)


@pytest.mark.parametrize(
    ("net", "options", "policy"),
    [
        ("Box", "prompt='box'", "a prompt of the box of the truth, each side moved out by U(0, 10 px)."),
        ("Box", "prompt='box', margin=0", "a prompt of the box of the truth."),
        ("Point", "prompt='points'", "a prompt of 1 to 3 points in the truth."),
        ("Point", "prompt='points', points=1", "a prompt of 1 point in the truth."),
    ],
)
def test_a_table_says_what_prompts_its_dice_is_given(
    place: Path, tmp_path: Path, net: str, options: str, policy: str
) -> None:
    words = ("--attack", "pgd(steps=2)", "--eps", "0.6", "--no-checks")
    shown = attack(place, tmp_path / "runs", options, *words, net=net)
    assert f"Dice given {policy}" in shown
    assert ("averaged(pgd" in shown) is ("margin=0" not in options)
    frame = rows(tmp_path / "runs")
    totals = frame[~frame["attack"].str.startswith("noise")].sum(numeric_only=True)
    clean, adv = (2 * totals[f"hit_{when}"] / (totals["n_target"] + totals[f"n_{when}"]) for when in ("clean", "adv"))
    assert clean > 0.9 > 0.85 > adv
    empty = frame[frame["n_target"] == 0]
    assert len(empty) == 2 * 2 * 3  # slices of three patients under noise and the attack
    assert (empty[["n_clean", "n_adv"]] == 0).all(axis=None)  # no prompt, no answer


def test_prompts_do_not_depend_on_the_batch_or_the_part(place: Path, tmp_path: Path) -> None:
    words = ("--attack", "pgd(steps=2)", "--eps", "0.05", "--no-checks", "--split", "all")
    attack(place, tmp_path / "whole", "prompt='points'", *words, net="Point")
    attack(place, tmp_path / "ones", "prompt='points'", *words, "--batch-size", "1", net="Point")
    for part in ("0/2", "1/2"):
        attack(place, tmp_path / "parts", "prompt='points'", *words, "--shard", part, net="Point")
    pd.testing.assert_frame_equal(rows(tmp_path / "whole"), rows(tmp_path / "ones"))
    pd.testing.assert_frame_equal(rows(tmp_path / "whole"), rows(tmp_path / "parts"))


def test_native_asks_for_the_attack_of_one_prompt(place: Path, tmp_path: Path) -> None:
    words = ("--attack", "pgd(steps=2)", "--eps", "0.05", "--no-checks", "--native")
    assert "pgd(steps=2) non_adaptive" in attack(place, tmp_path / "runs", "prompt='box'", *words)
    headers = [read_header(run.parent) for run in (tmp_path / "runs").rglob("run.json")]
    assert {header["prompt"] for header in headers} == {
        "prompt of the box of the truth, each side moved out by U(0, 10 px)"
    }


@pytest.mark.parametrize(
    ("options", "net", "message"),
    [
        ("prompt='x'", "Box", "unknown prompt: expected one of these, got 'x'"),
        ("prompt='box', dims=3", "Box", "expected dims=2 beside prompt='box', got 3; prompts are drawn on slices"),
        ("prompt='box', window=(8, 8)", "Box", "expected no window= beside prompt='box', got (8, 8)"),
        ("prompt='box', mirror=(0,)", "Box", "expected no mirror= beside prompt='box', got (0,)"),
        ("prompt='box', axes='xy'", "Box", "expected no axes= beside prompt='box', got 'xy'"),
        ("prompt='points', head='sigmoid'", "Point", "expected no head= beside prompt='points', got 'sigmoid'"),
        ("prompt='box', margin=-1", "Box", "expected margin >= 0, got -1"),
        ("prompt='box', points=1", "Box", "expected points= beside prompt='points' alone, got prompt='box'"),
        ("prompt='points', margin=0", "Point", "expected margin= beside prompt='box' alone, got prompt='points'"),
        ("margin=0", "Plain", "expected margin= beside prompt='box' alone, got prompt=''"),
        ("prompt='points', points=0", "Point", "expected points >= 1, got 0"),
        ("prompt='box'", "Plain", "takes 2 positional arguments but 3 were given in module.py, line 1"),
        ("", "Box", "missing 1 required positional argument: 'boxes'"),
        (
            "prompt='box', encoder='x'",
            "Box",
            "unknown encoder: expected a part of the network, got 'x'; there is: encoder",
        ),
        ("encoder='encoder', window=(8, 8)", "Plain", "expected no window= or mirror= beside encoder='encoder'"),
        ("prompt='box'", "TwoMaps", "one for each of organ, got (1, 2, 40, 40); let it answer one map per prompt"),
    ],
)
def test_what_is_no_promptable_network_is_refused(
    place: Path, tmp_path: Path, options: str, net: str, message: str
) -> None:
    words = ("--attack", "noise", "--eps", "0.05", "--no-checks", "--batch-size", "1")
    assert message in attack(place, tmp_path / "runs", options, *words, net=net, code=2)
    assert not (tmp_path / "runs").exists()


def test_features_of_the_encoder_are_attacked(place: Path, tmp_path: Path) -> None:
    """No prompt has a part in them, so that nothing is averaged, and the attack knows all that there is to know."""
    words = ("--attack", "mafl(weight=0, smoothness=0, steps=4)", "--eps", "0.6", "--no-checks")
    attack(place, tmp_path / "runs", "prompt='box', encoder='encoder'", *words)
    frame = rows(tmp_path / "runs")
    attacked = frame[frame["attack"].str.startswith("mafl(")]
    assert attacked["hit_adv"].sum() < attacked["hit_clean"].sum()
    headers = [read_header(run.parent) for run in (tmp_path / "runs").rglob("run.json")]
    assert {header["knowledge"] for header in headers if header["role"] == "attack"} == {"adaptive"}


@pytest.mark.parametrize(
    ("options", "typed"),
    [("prompt='box', encoder='encoder'", "mafl(steps=2)"), ("prompt='box'", "mafl(weight=0, steps=2)")],
)
def test_features_that_a_prompt_has_a_part_in_are_averaged(
    place: Path, tmp_path: Path, options: str, typed: str
) -> None:
    """The objective beside them sees it; and the deepest map of any network may be one of its decoder."""
    words = ("--attack", typed, "--eps", "0.6", "--no-checks", "--no-control", "--plan", "--json")
    assert f"averaged({typed})" in attack(place, tmp_path / "runs", options, *words)


def test_the_worst_prompt_is_a_row_among_the_controls(place: Path, tmp_path: Path) -> None:
    words = ("--attack", "worst_prompt(prompts=4)", "--attack", "fgsm", "--eps", "0.05", "--no-checks")
    shown = attack(place, tmp_path / "runs", "prompt='box'", *words)
    assert re.search(r"clean .* noise .* worst_prompt\(prompts=4\) .* averaged\(fgsm\)", shown)
    frame = rows(tmp_path / "runs")
    moved = frame[frame["attack"] == "worst_prompt(prompts=4)"]
    assert moved["hit_adv"].sum() < moved["hit_clean"].sum()


@pytest.mark.parametrize(
    ("options", "net", "words", "message"),
    [
        ("", "Plain", ["worst_prompt"], "expected a promptable model for worst_prompt, got one without prompts"),
        ("prompt='box'", "Box", ["shuffled(worst_prompt)"], "expected worst_prompt by itself, got shuffled("),
        ("prompt='box'", "Box", ["averaged(worst_prompt)"], "expected worst_prompt by itself, got averaged("),
        (
            "prompt='box'",
            "Box",
            ["worst_prompt", "--save-adversarial", "all"],
            "expected attacks on images beside --save-adversarial, got worst_prompt, which changes none",
        ),
    ],
)
def test_where_the_worst_prompt_has_no_meaning_it_is_refused(
    place: Path, tmp_path: Path, options: str, net: str, words: list[str], message: str
) -> None:
    assert message in attack(place, tmp_path / "runs", options, "--attack", *words, net=net, code=2)
    assert not (tmp_path / "runs").exists()


def test_prompts_do_not_follow_anatomy_that_moves(place: Path, tmp_path: Path) -> None:
    says = "expected attacks that leave anatomy where it is on a model with prompts, got deformation"
    assert says in attack(place, tmp_path / "runs", "prompt='box'", "--attack", "deformation", code=2)


@pytest.mark.parametrize("typed", ["di2_fgsm", "restarts(attack=pgd(diversity=0.5))"])
def test_prompts_do_not_follow_smaller_copies(place: Path, tmp_path: Path, typed: str) -> None:
    says = f"expected gradients of images in their place on a model with prompts, got {typed}"
    words = ("--attack", typed, "--eps", "0.05", "--no-checks")
    assert says in attack(place, tmp_path / "runs", "prompt='box'", *words, code=2)
    assert not (tmp_path / "runs").exists()
    attack(place, tmp_path / "runs", "prompt='box'", "--attack", "di2_fgsm(diversity=0)", *words[2:])


@pytest.mark.parametrize("around", ["tta({})", "ensemble({})", "guarded({}, (bit_depth,))", "voted({})"])
def test_a_model_around_a_promptable_one_is_refused(place: Path, tmp_path: Path, around: str) -> None:
    inner = f"own({str(place / 'promptable.py') + ':Box'!r}, prompt='box')"
    words = ("--data", place / "data", "--model", around.format(inner), "--attack", "noise", "--trust")
    result = medattack("attack", *words, "--home", place / "home", "--out", tmp_path / "runs", code=2)
    says = f"expected a model without prompts for {around.split('(')[0]}, got one with a prompt of the box"
    assert says in " ".join(result.stderr.split())


def test_a_certificate_says_what_prompts_its_bounds_are_given(place: Path, tmp_path: Path) -> None:
    model = f"own({str(place / 'promptable.py') + ':Box'!r}, prompt='box')"
    words = ("--data", place / "data", "--model", model, "--trust", "--home", place / "home", "--out", tmp_path / "c")
    certificate = ("--certificate", "expected_dice(sigma=0.05, draws=20)", "--radius", "0.001", "--check", "0")
    says = (
        "All of it is of the model given a prompt of the box of the truth, each side moved out by U(0, 10 px), which "
        "no change of the scan moves."
    )
    assert says in " ".join(medattack("certify", *words, *certificate).stdout.split())
    (on_page,) = results([tmp_path], unit="volume", empty="one").certificates
    assert says in on_page.sheet.caption


def test_doctor_says_what_prompts_a_model_gets(place: Path) -> None:
    model = f"own({str(place / 'promptable.py') + ':Box'!r}, prompt='box')"
    words = ("--data", place / "data", "--model", model, "--trust", "--home", place / "home")
    shown = " ".join(medattack("doctor", *words).stdout.split())
    assert "prompt of the box of the truth, each side moved out" in shown


def test_a_thief_has_no_prompts_and_nothing_is_written(place: Path, tmp_path: Path) -> None:
    victim = f"own({str(place / 'promptable.py') + ':Box'!r}, prompt='box')"
    words = ("--data", place / "data", "--trust", "--home", place / "home", "--out", tmp_path / "copy")
    result = medattack("extract", "--victim", victim, "--queries", "1", *words, code=2)
    assert "expected a victim without prompts, got one with a prompt of the box" in " ".join(result.stderr.split())
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("black_box", "attack"), [(False, ["--loss", "bce"]), (True, ["--attack", "square"])])
def test_doctor_says_how_to_attack_a_sound_model(
    place: Path, tmp_path: Path, black_box: bool, attack: list[str]
) -> None:
    file = tmp_path / "my net.py"
    file.write_text(f"{NETWORKS}\n\nclass Mine(Box):\n    black_box = {black_box}\n")
    model = f"own({str(file) + ':Mine'!r}, prompt='box')"
    words = ["--data", str(place / "data"), "--model", model]
    result = medattack("doctor", *words, "--home", place / "home")
    following = ["medattack", "attack", *words, *attack, "--eps", "4/255", "--home", str(place / "home")]
    assert shlex.split(result.stderr.splitlines()[-1]) == ["Next:", *following]
