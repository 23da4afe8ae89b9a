"""What cannot be attacked so is told in one sentence before anything is written; and what only looks unusual runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command import medattack
from helpers.scans import write_channels, write_pair

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models import checkpoints
from medseg_attack.types import Task

SMALL = "unet_small(channels=(4, 8))"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of organs that overlap, of labels that exclude each other and of two channels, each with a model."""
    home = tmp_path_factory.mktemp("refusals")
    for n in range(4):  # one organ and background
        write_pair(
            home / f"decathlon/imagesTr/spleen_{n}.nii.gz",
            home / f"decathlon/labelsTr/spleen_{n}.nii.gz",
            mask=np.arange(400).reshape(8, 10, 5) % 2,
        )
    sources = {
        "organs": (home / "scans", "phantom(patients=6, slices=3, side=32)"),
        "labels": (home / "decathlon", "decathlon"),
        "channels": (write_channels(home / "two", together=False), "decathlon"),
    }
    for name, (source, form) in sources.items():
        medattack("prepare", source, "--format", form, "--home", home, "--out", home / "data" / name)
        save(home / name, open_prepared(home / "data" / name).task)
    save(home / "liver", Task("liver", ("liver",)))
    return home


def save(folder: Path, task: Task) -> None:
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoints.save(folder, registry.build(SMALL, "model")(task), {"label": folder.name, "spec": SMALL})


def attack(home: Path, out: Path, data: str, *words: object, code: int = 0) -> Any:
    options = ("--home", home, "--data", home / "data" / data, "--model", home / data, "--split", "all", "--out", out)
    return medattack("attack", *options, "--no-checks", "--no-control", *words, code=code)


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        ("organs", ["--attack", "pgd(objective=toward(bce, erase('heart')))"], "to name an organ of phantom"),
        ("organs", ["--attack", "dag(goal=swap('stomach', 'heart'))"], "to name an organ of phantom"),
        ("organs", ["--attack", "for_organ(pgd, 'heart')"], "an organ of phantom, got 'heart'"),
        ("organs", ["--attack", "pgd(objective=toward(bce, erase(stomach)))"], "got 'stomach'"),
        ("organs", ["--attack", "transfer(surrogate='HOME/liver')"], "was trained for ('liver',)"),
        ("organs", ["--attack", "patch(area(1.0))"], "a patch smaller than the image"),
        ("organs", ["--attack", "pgd", "--loss", "dlr"], "take margin"),
        ("labels", ["--attack", "pgd", "--loss", "dlr"], "three classes or more for dlr"),
        ("labels", ["--attack", "square(objective=dlr, queries=5)"], "three classes or more for dlr"),
        ("organs", ["--attack", "square(queries=0)"], "queries >= 1, got 0"),
        ("organs", ["--attack", "spsa(queries=0)"], "queries >= 26"),
        ("organs", ["--attack", "zoo(queries=0)"], "queries >= 42"),
        ("organs", ["--attack", "boundary(queries=0)"], "queries >= 15"),
        ("organs", ["--attack", "strongest(gradients=0)"], "gradients >= 1, got 0"),
        ("organs", ["--attack", "pgd", "--eps=-0.01"], "eps >= 0, got -0.01"),
        ("organs", ["--attack", "pgd(linf(-0.01))"], "0 <= eps < 1"),
        ("organs", ["--attack", "pgd", "--loss", "bcee"], "got 'bcee'; did you mean bce"),
        ("organs", ["--attack", "pgd(objective=bcee)"], "got 'bcee'; did you mean bce or ce?"),
        ("organs", ["--attack", "spsa(objective=masked_ce)"], "take masked_bce"),
        ("organs", ["--attack", "uap(objective=masked_ce)", "--split", "test"], "take masked_bce"),
        ("organs", ["--attack", "bias_field(objective=masked_ce)"], "take masked_bce"),
        ("organs", ["--attack", "pgd(channels(channels=(3,)))"], "expected channels below 1"),
        *(
            ("organs", ["--attack", f"{name}(channels(linf(0.1), channels=(1,)))"], "expected channels below 1")
            for name in ("zoo", "spsa", "ni_fgsm", "padam", "boundary", "square")
        ),
        ("channels", ["--attack", "uap(channels(channels=(0, 2)))", "--split", "test"], "expected channels below 2"),
        ("organs", ["--attack", "dag", "--region", "body"], "in a ball for --region, got one of the least change"),
    ],
)
def test_it_is_told_in_a_sentence_and_nothing_is_left(
    home: Path, tmp_path: Path, data: str, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    stderr = attack(home, out, data, *(word.replace("HOME", str(home)) for word in words), code=2).stderr
    assert message in " ".join(stderr.split())
    assert stderr.count("error:") == 1
    assert not out.exists()


@pytest.mark.parametrize("name", ["pgd(steps=2)", "uap(epochs=2)", "uap_gaussian", "square(queries=9)"])
def test_each_modality_has_its_budget_from_the_command_line(home: Path, tmp_path: Path, name: str) -> None:
    """One, the other and both with shares: rows say the ball, and what moved is within it."""
    sizes = []
    for n, ball in enumerate(("channels=(0,)", "channels=(1,)", "channels=(0, 1), shares=(1.0, 0.5)")):
        opened = name.rstrip(")") + (", " if "(" in name else "(")
        split = "test" if name.startswith("uap(") else "all"
        out = tmp_path / str(n)
        text = f"{opened}ball=channels(linf(0.1), {ball}))"
        attack(home, out, "channels", "--split", split, "--attack", text, "--save-adversarial", "all")
        rows = pd.concat(map(pd.read_parquet, out.rglob("parts/*.parquet")))
        sizes.append(rows["size"].max())
        (config,) = (json.loads(file.read_text())["attack"] for file in out.rglob("config.json"))
        assert ("", "channels=(1,)", "shares=(1.0, 0.5)")[n] in config
        medattack("verify", next(out.rglob("run.json")).parent)
    assert min(sizes) > 0
    assert max(sizes) <= 0.1 + 1e-9


@pytest.mark.parametrize("text", ["strongest(gradients=9)", "uap(epochs=1)", "padam(steps=3)", "zoo(queries=50)"])
def test_a_region_is_kept_from_the_command_line(home: Path, tmp_path: Path, text: str) -> None:
    split = "test" if text.startswith("uap") else "all"
    attack(home, tmp_path / "out", "organs", "--attack", text, "--region", "outside:stomach", "--split", split)
    assert list((tmp_path / "out").rglob("run.json"))


def test_the_shuffled_control_and_the_queries_of_every_black_box_are_shown(home: Path, tmp_path: Path) -> None:
    least_queries = {"zoo(queries=50)": 42, "spsa(queries=50)": 43, "square(queries=9)": 9, "boundary(queries=20)": 20}
    words = [word for text in (*least_queries, "shuffled(pgd(steps=2))") for word in ("--attack", text)]
    shown = " ".join(attack(home, tmp_path / "out", "organs", *words).stdout.split())
    for text, queries in least_queries.items():
        assert f"{text} {queries}" in shown
    assert "shuffled(" in shown


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("certify", "--model", "unet_small", "--csv", "bounds.csv"), "csv"),
        (("certify", "--model", "unet_small", "--plot", "bounds.png"), "plot"),
        (("defend", "voted('unet')", "--csv", "worth.csv"), "csv"),
    ],
)
def test_what_a_plan_would_not_write_is_refused(words: tuple[str, ...], option: str) -> None:
    result = medattack(*words, "--plan", code=2)
    assert f"expected --{option} without --plan, got both" in " ".join(result.stderr.split())
