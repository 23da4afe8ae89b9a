"""Attacks, scores, certificates and pictures on tensors; with cases their numbers are those of the command line."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command import medattack
from helpers.tensors import bright_model, squares, threshold
from torch import nn
from typer.testing import CliRunner

import medseg_attack as ma
from medseg_attack.cli import app
from medseg_attack.numerics.flows import moved
from medseg_attack.runs.rows import Row


def test_an_attack_returns_what_it_did_to_each_image() -> None:
    images, masks = squares()
    result = ma.attack(bright_model(), images, masks, "fgsm", eps="0.06")
    assert result.images.shape == images.shape
    assert torch.allclose(result.size, torch.tensor(0.06), atol=1e-6)
    assert result.harm.tolist() == [1, 1, 1]  # every pixel is within 0.05 of the decision
    assert result.passes.tolist() == [[2, 1]] * 3
    assert torch.equal(result.masks, ~masks)
    assert torch.equal(result.truth, masks)
    assert result.rows.hit_clean.tolist() == masks.sum((1, 2, 3)).tolist()
    assert result.attack == "fgsm eps=0.06"


def test_a_default_attack_in_its_own_budget_is_the_strongest() -> None:
    images, masks = squares(1, contrast=0.01)
    result = ma.attack(bright_model(), images, masks)
    assert result.attack == "strongest"
    assert result.harm.item() > 0.9


def test_neither_network_nor_images_are_changed() -> None:
    images, masks = squares()
    model, before = bright_model(), images.clone()
    ma.attack(model, images, masks, "pgd(steps=2)", eps=0.1)
    assert torch.equal(images, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_spec_and_what_it_builds_are_the_same_attack() -> None:
    images, masks = squares()
    spec = "pgd(linf(4/255), steps=3)"
    first = ma.attack(bright_model(), images, masks, spec)
    second = ma.attack(bright_model(), images, masks, ma.build(spec))
    assert torch.equal(first.images, second.images)
    noise = [ma.attack(bright_model(), images, masks, "noise", seed=seed).images for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_budgets_that_differ_per_image_keep_the_order_of_the_images() -> None:
    images, masks = squares()
    noisy = (images + torch.tensor([0.16, 0.01, 0.04]).view(3, 1, 1, 1) * torch.randn(images.shape)).clamp(0, 1)
    result = ma.attack(bright_model(), noisy, masks, "fgsm", eps="1sigma")
    assert result.size.argsort().tolist() == [1, 2, 0]
    alone = [ma.attack(bright_model(), noisy[[n]], masks[[n]], "fgsm", eps="1sigma") for n in range(3)]
    assert torch.equal(result.images, torch.cat([each.images for each in alone]))


def test_moved_anatomy_takes_the_truth_along() -> None:
    masks = squares()[1]
    result = ma.attack(bright_model(), torch.rand(3, 1, 16, 16), masks, "deformation(steps=3)")
    assert result.flow is not None
    assert result.flow.any()
    assert torch.equal(result.truth, moved(masks, result.flow, exclusive=False))


def test_scores_are_per_image_and_class() -> None:
    images, masks = squares()
    table = ma.score(bright_model(), images, masks, metrics=["hd95_mm"])
    assert table.dice.tolist() == [1, 1, 1]
    assert table.hd95_mm.tolist() == [0, 0, 0]
    assert ma.score(bright_model(), 0 * images, masks).dice.tolist() == [0, 0, 0]


def test_an_absent_class_scores_as_the_rule_says() -> None:
    images, masks = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    scores = [ma.score(bright_model(), images, masks, empty=rule).dice.iloc[0] for rule in ("one", "zero")]
    assert scores == [1, 0]


def test_bounds_hold_under_attack_and_each_image_is_a_scan() -> None:
    images, masks = squares(2, contrast=0.6)
    model, method = bright_model(), "expected_dice(sigma=0.1, draws=60)"
    table = ma.certify(model, images, masks, method, radii=[0.05, 0.1])
    assert table.shape[0] == 4
    assert (table.low <= table.value).all()
    assert (table.refuted == "").all()
    assert table.checked.all()
    assert not ma.certify(model, images, masks, method, radii=[0.05], check=False).checked.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_figure_shows_slices_and_scans(dims: int, tmp_path: Path) -> None:
    images, masks = squares(2, dims)
    result = ma.attack(bright_model(dims), images, masks, "fgsm", eps=0.06)
    figure = ma.draw(result, 1)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert [axis.get_title() for axis in figure.axes[:4:3]] == ["1", "fgsm eps=0.06"]
    with pytest.raises(ma.InputError, match="expected a case from 0 to 1, got 2"):
        ma.draw(result, 2)
    with pytest.raises(ma.InputError, match="expected classes among lesion, got 'liver'"):
        ma.draw(result, classes=("liver",))
    with pytest.raises(ma.InputError, match="index"):
        ma.draw(result, index=9)


def test_a_wrapped_network_repeats_grey_images_for_a_network_of_colours() -> None:
    net = nn.Conv2d(3, 2, 3, padding=1).eval()
    model = ma.wrap(net, ["background", "lesion"], exclusive=True, channels=3, normalise="imagenet", window=(8, 8))
    images, masks = squares()
    result = ma.attack(model, images, torch.cat((~masks, masks), 1), "fgsm", eps=0.01)
    assert result.images.shape == images.shape
    assert result.rows.cls.unique().tolist() == ["lesion"]
    assert threshold().weight.requires_grad


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a model and a run of it in a folder."""
    root = tmp_path_factory.mktemp("library")
    phantom = "phantom(patients=6, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "data")
    medattack("train", "--data", root / "data", "--model", "unet_small", "--epochs", "2", "--out", root / "model")
    return root


@pytest.mark.parametrize(
    ("attack", "eps"), [("pgd(steps=3)", "0.02"), ("strongest(gradients=8)", "4/255"), ("fgsm", "2sigma")]
)
def test_numbers_are_those_of_the_command_line(workspace: Path, tmp_path: Path, attack: str, eps: str) -> None:
    """Same model, data, attack, budget, seed and batch: the same rows, bit for bit, and the same averages."""
    words = ["--data", workspace / "data", "--model", workspace / "model", "--no-checks", "--no-control", "--seed", 3]
    medattack("attack", *words, "--attack", attack, "--eps", eps, "--batch-size", 64, "--out", tmp_path / "run")
    stored = ma.read_runs(tmp_path / "run")
    data = ma.open_data(workspace / "data")
    model = ma.load(workspace / "model", workspace / "data")
    batch = data.batch(stored.case.unique())
    result = ma.attack(model, batch.image, batch.target, attack, eps=eps, cases=batch.cases, seed=3)
    columns = [name for name in Row.__annotations__ if name in stored]
    pd.testing.assert_frame_equal(result.rows[columns], stored[columns])
    ours, theirs = ma.summary(result.rows), ma.summary(stored)
    shared = [column for column in theirs.columns if column in ours and column not in ("run", "verified")]
    assert {"mean_adv", "low", "high", "drop", "missed", "forwards"} <= {*shared}
    pd.testing.assert_frame_equal(ours[shared], theirs[shared])


def test_scores_are_those_of_evaluate(workspace: Path, tmp_path: Path) -> None:
    words = ["--data", workspace / "data", "--model", workspace / "model", "--metric", "hd95_mm", "--batch-size", 64]
    medattack("evaluate", *words, "--csv", tmp_path / "scores.csv", "--out", tmp_path / "run")
    stored = pd.read_csv(tmp_path / "scores.csv")
    data, model = ma.open_data(workspace / "data"), ma.load(workspace / "model", workspace / "data")
    batch = data.batch(stored.case.unique())
    table = ma.score(model, batch.image, batch.target, metrics=["hd95_mm"], cases=batch.cases)
    pd.testing.assert_frame_equal(table, stored[table.columns], check_dtype=False)


def test_bounds_are_those_of_certify(workspace: Path, tmp_path: Path) -> None:
    method, words = "expected_dice(sigma=0.1, draws=60)", ["--data", workspace / "data", "--model", workspace / "model"]
    how = ["--check", 1, "--limit", 1, "--radius", 0.01, "--seed", 3, "--csv", tmp_path / "bounds.csv"]
    medattack("certify", *words, "--certificate", method, *how, "--out", tmp_path / "certificate")
    stored = pd.read_csv(tmp_path / "bounds.csv")
    data, model = ma.open_data(workspace / "data"), ma.load(workspace / "model", workspace / "data")
    table = data.table()
    scan = table[table.volume == stored.volume.iloc[0]].sort_values("slice")
    batch = data.batch(scan.case)
    bounds = ma.certify(model, batch.image, batch.target, method, radii=[0.01], cases=batch.cases, seed=3)
    numbers = ["clean", "value", "low"]
    pd.testing.assert_frame_equal(bounds[["cls", *numbers]], stored[["cls", *numbers]], check_dtype=False)


@pytest.mark.parametrize("method", ["entropy", "linear_probe"])
def test_suspicion_is_that_of_detect_and_screen(workspace: Path, tmp_path: Path, method: str) -> None:
    """Fitted by the command and read from its file; and fitted here on the same patients."""
    where = ["--data", workspace / "data", "--model", workspace / "model"]
    medattack("attack", *where, "--attack", "fgsm", "--out", tmp_path / "runs", "--no-checks", "--home", tmp_path)
    medattack(
        "detect",
        tmp_path / "runs",
        "--detector",
        method,
        "--out",
        tmp_path / "fitted",
        "--non-adaptive",
        "--home",
        tmp_path,
    )
    (file,) = (tmp_path / "fitted").glob("*.safetensors")
    rate = ["--false-alarms", 0.5, "--home", tmp_path, "--json"]
    alarms = CliRunner().invoke(
        app, list(map(str, ["screen", workspace / "data", "--model", workspace / "model", "--detector", file, *rate]))
    )
    stored = pd.DataFrame(json.loads(alarms.stdout)["scans"])
    data, model = ma.open_data(workspace / "data"), ma.load(workspace / "model", workspace / "data")
    cases = data.table().sort_values(["volume", "slice"])
    batch = data.batch(cases.case)
    parts = {name: data.batch([ref.id for ref in data.refs(name)]) for name in ("train", "val")}
    # a scan that the detector was calibrated with lies on a threshold, where the last bit decides
    others = ~stored.scan.isin({case.volume for case in parts["val"].cases})
    assert stored.alarm[others].any()
    for table in (
        ma.detect(model, batch.image, file, false_alarms=0.5, cases=batch.cases),
        ma.detect(
            model,
            batch.image,
            method,
            training=parts["train"],
            calibration=parts["val"],
            false_alarms=0.5,
            cases=batch.cases,
        ),
    ):
        assert table.scan.tolist() == stored.scan.tolist()
        assert table.score.tolist() == pytest.approx(stored.score.tolist(), abs=1e-4)
        assert table.alarm[others].tolist() == stored.alarm[others].tolist()
    other = bright_model()
    with pytest.raises(ma.InputError, match="expected a detector of the classes lesion"):
        ma.detect(other, torch.rand(1, 1, 32, 32), file)


def test_prepared_data_is_a_table_of_its_cases(workspace: Path) -> None:
    data = ma.open_data(workspace / "data")
    table = data.table()
    assert table.volume.nunique() * 3 == len(table) == table.case.nunique()
    assert {"case", "volume", "group", "part", "slice", "shape", "spacing_mm", "unit"} == {*table.columns}
    assert set(table.part) >= {"test", 0}
    assert set(data.table(dims=3).case) == set(table.volume)
    with pytest.raises(ma.InputError, match=r"expected a case of .*, got 'nobody'"):
        data.batch(["nobody"])
    with pytest.raises(ma.InputError, match=r"expected cases of one shape .*, got no case"):
        data.batch([])


@pytest.mark.parametrize("scope", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_attack_has_gradients_in_every_scope(scope: Callable[[], Any]) -> None:
    (images, masks), model = squares(2), bright_model()
    expected = ma.attack(model, images, masks, "fgsm", eps=0.1)
    with scope():
        inside = ma.attack(model, images.clone(), masks.clone(), "fgsm", eps=0.1)
    outside = ma.attack(model, inside.images.clone(), masks, "fgsm", eps=0.1)
    assert torch.equal(inside.images, expected.images)
    assert outside.size.tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("eps", [np.float64(4 / 255), Fraction(4, 255), 4 / 255])
def test_a_budget_is_any_number(eps: Any) -> None:
    images, masks = squares(2)
    assert ma.attack(bright_model(), images, masks, "fgsm", eps=eps).attack == "fgsm eps=4/255"
