"""`compare --ejection-fraction` on scans of two phases, in the layout of ACDC."""

import json
from pathlib import Path

import pytest
from helpers.command import medattack
from helpers.hearts import write_heart


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heart")
    source = write_heart(root / "scans", 8)
    medattack("prepare", source, "--format", "acdc", "--out", root / "data", "--test", "0.5")
    model = "unet_small(channels=(4, 8))"
    medattack(
        "train", "--data", root / "data", "--model", model, "--epochs", "8", "--lr", "1e-2", "--out", root / "model"
    )
    aims = [f"volume_bias(organ='lv', aim='{aim}', steps=5)" for aim in ("less ejected", "more ejected")]
    medattack(
        *(
            "attack",
            "--data",
            root / "data",
            "-m",
            root / "model",
            "--eps",
            "0.1",
            "--no-checks",
            "--out",
            root / "runs",
        ),
        *(word for aim in aims for word in ("--attack", aim)),
    )
    return root / "runs"


def test_each_aim_moves_the_fraction_its_way(runs: Path) -> None:
    answer = json.loads(medattack("compare", runs, "--ejection-fraction", "lv", "--json").stdout)
    rows = {row["attack"]: row for row in answer["ejection_fractions"]}
    (less,) = [row for name, row in rows.items() if "less" in name]
    (more,) = [row for name, row in rows.items() if "more" in name]
    assert less["change"] < -1 < 1 < more["change"]
    assert less["patients"] == more["patients"] == 4
    assert less["target"] == more["target"] > 20
    shown = " ".join(medattack("compare", runs, "--ejection-fraction", "lv").stdout.split())
    assert "Ejection fraction of lv in %" in shown
    assert f"{less['change']:+.1f}" in shown


def test_an_organ_that_is_none_is_refused(runs: Path) -> None:
    sentence = " ".join(medattack("compare", runs, "--ejection-fraction", "la", code=2).stderr.split())
    assert "expected an organ of the runs, got 'la'" in sentence


def test_hearts_without_phases_are_refused_by_the_attack_and_by_the_table(tmp_path: Path) -> None:
    source = write_heart(tmp_path / "scans", 4)
    for file in source.glob("*/Info.cfg"):
        file.write_text("Group: NOR\n")
    medattack("prepare", source, "--format", "acdc", "--out", tmp_path / "data", "--test", "0.5")
    model = ("--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--out", tmp_path / "model")
    medattack("train", "--data", tmp_path / "data", *model)
    attack = (
        "attack",
        "--data",
        tmp_path / "data",
        "-m",
        tmp_path / "model",
        "--no-checks",
        "--out",
        tmp_path / "runs",
    )
    aim = ("--attack", "volume_bias(organ='lv', aim='less ejected', steps=1)")
    refused = medattack(*attack, *aim, code=2).stderr
    sentence = " ".join(refused.split())
    assert "error: expected cases at end diastole or end systole for aim='less ejected', got " in sentence
    assert "Info.cfg" in sentence
    medattack(*attack, "--attack", "noise")
    table = medattack("compare", tmp_path / "runs", "--ejection-fraction", "lv", code=2).stderr
    assert "error: expected scans of end diastole and of end systole of a patient" in " ".join(table.split())
