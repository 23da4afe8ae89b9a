"""Faults planted in a network that `own(...)` reads, one by one: `doctor` or `attack` raises the flag that names it.

A minute in all: each fault is a run of the command line on a network that was trained, since a flag that is raised
on tensors alone may be lost on the way to the user.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.faults import STAMPED, write

# the flags that doctor raises, and those that attack raises
PLANTED: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "quantiser": (["MA001", "MA021"], ["MA001", "MA021"]),
    "jpeg": (["MA001", "MA020", "MA021"], ["MA001", "MA020", "MA021"]),
    "resize": (["MA001"], ["MA001"]),
    "dropout": (["MA003"], ["MA003"]),
    "noise": (["MA003"], ["MA003"]),
    "train_mode": (["MA004"], ["MA004"]),
    "normalised_twice": (["MA014", "MA019"], ["MA014", "MA019"]),
    "stripes": (["MA001"], ["MA001"]),
    "window": (["MA001"], ["MA001"]),
    "swapped": (["MA014"], ["MA014"]),
    "flipped": (["MA014"], ["MA014"]),
    "transposed": (["MA014"], ["MA014"]),
    "times_1000": (["MA019"], ["MA019"]),
    "sinus": (["MA021"], ["MA021"]),
    "half_outside": (["MA017"], ["MA017"]),
    "half_inside": (["MA017"], ["MA017"]),
    "autocast": (["MA017"], ["MA017"]),
    "sigmoid": (["MA005", "MA014"], ["MA005", "MA014"]),
    "clamped": (["MA036"], ["MA036"]),
    "hard_sigmoid": (["MA005", "MA014", "MA036"], ["MA005", "MA014", "MA036"]),
    "hard_logits": (["MA036"], ["MA036"]),
    "nan_on_attacked": ([], ["MA022"]),
    "nan_on_some_attacked": ([], ["MA022"]),
    "no_slope_on_some": ([], ["MA001"]),
}
REFUSED = ("argmax", "detached")  # no gradient at all


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("faults"))


def spec(root: Path, fault: str) -> str:
    return f"own('{root / 'nets.py'}:{fault}', weights='{root / 'net.safetensors'}')"


def doctor(root: Path, fault: str) -> list[dict[str, Any]]:
    from typer.testing import CliRunner

    from medseg_attack.cli import app

    words = ["doctor", "--model", spec(root, fault), "--data", str(root / "data"), "--trust", "--json"]
    result = CliRunner().invoke(app, words)
    flags: list[dict[str, Any]] = json.loads(result.stdout)["flags"]
    assert result.exit_code == any(flag["verdict"] == "invalid" for flag in flags)
    return flags


def attack(root: Path, fault: str, out: Path, code: int = 0) -> Any:
    words = ["--data", root / "data", "--trust", "--attack", "pgd(steps=20)", "--eps", "4/255", "--out", out, "--json"]
    return medattack("attack", "--model", spec(root, fault), *words, code=code)


def codes(flags: Sequence[dict[str, Any]]) -> set[str]:
    return {flag["code"] for flag in flags}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_flagged(root: Path, tmp_path: Path, fault: str) -> None:
    by_doctor, by_attack = map(set, PLANTED[fault])
    assert by_doctor <= codes(doctor(root, fault))
    assert by_attack <= codes(json.loads(attack(root, fault, tmp_path / "run").stdout)["flags"])


@pytest.mark.parametrize("fault", REFUSED)
def test_a_model_without_a_gradient_is_flagged_and_refused(root: Path, tmp_path: Path, fault: str) -> None:
    assert "MA002" in codes(doctor(root, fault))
    assert "(MA002)" in attack(root, fault, tmp_path / "run", code=2).stderr


def test_the_network_without_a_fault_has_no_flag(root: Path, tmp_path: Path) -> None:
    assert doctor(root, "healthy") == []
    flags = json.loads(attack(root, "healthy", tmp_path / "run").stdout)["flags"]
    assert {flag["verdict"] for flag in flags} <= {"note"}


@pytest.mark.parametrize(
    ("fault", "fit"),
    [
        ("swapped", "its square is round and its round is square"),
        ("flipped", "its rows are reversed"),
        ("transposed", "its rows and columns are exchanged"),
    ],
)
def test_doctor_says_which_order_of_labels_would_fit(root: Path, fault: str, fit: str) -> None:
    (text,) = [flag["seen"] for flag in doctor(root, fault) if flag["code"] == "MA014"]
    assert text.endswith(f"if {fit}")


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("nan_on_some_attacked", "MA022", "NaN or infinity in the output on"),
        ("no_slope_on_some", "MA001", "every gradient was 0 on"),
    ],
)
def test_a_fault_that_the_look_before_does_not_meet_is_named_by_case(
    root: Path, tmp_path: Path, fault: str, code: str, text: str
) -> None:
    flags = json.loads(attack(root, fault, tmp_path / "run").stdout)["flags"]
    (checked,) = (tmp_path / "run").rglob("checks.json")
    stamped = {f"p{n:02d}" for n in STAMPED}
    assert not stamped & set(json.loads(checked.read_text())["cases"])
    (named,) = {flag["seen"] for flag in flags if flag["code"] == code}
    assert named.startswith(text)
    cases = set(re.findall(r"p\d\d", named))
    assert cases
    assert cases <= stamped
