"""The ladder of corruptions in a study: a run per kind, severities as budgets, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from helpers.attacked import write_attacked
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.attacks.controls.corruption import LADDERS, Corruption, Severity
from medseg_attack.errors import InputError
from medseg_attack.runs.grid import cells
from medseg_attack.runs.study import Study


def study(*attacks: str, eps: tuple[str, ...] = ("1", "5")) -> Study:
    return Study(data="data", models=["unet"], attacks=list(attacks), eps=list(eps))


def test_a_study_has_a_run_of_each_kind_and_severity_and_no_other_control() -> None:
    grid = cells(study("corruption('ct')"))
    assert len(grid) == 2 * len(LADDERS["ct"])
    assert {cell.role for cell in grid} == {"control"}
    assert {cell.eps for cell in grid} == {1.0, 5.0}
    assert len({cell.label for cell in grid}) == len(LADDERS["ct"])
    assert "corruption(modality='ct', kind='pixelate')" in {cell.label for cell in grid}


def test_one_kind_is_one_run() -> None:
    (cell,) = cells(study("corruption(kind='motion')", eps=("3",)))
    assert str(cell.ball) == "severity"


def test_mri_has_fifteen_kinds() -> None:
    assert len(LADDERS["mri"]) == 15


def test_called_by_itself_it_draws_a_kind_for_every_image() -> None:
    model = registry.build("oracle", "model")(registry_task()).eval()
    image = torch.rand(8, 1, 40, 40, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 1, 1)
    image = image[:1].expand(8, -1, -1, -1)
    result = Corruption()(model, image, image > 0.5, range(8))
    changes = (result.image - image).flatten(1)
    assert len({tuple(row.tolist()) for row in changes}) == 8
    assert result.size.tolist() == [3.0] * 8


def registry_task():  # type: ignore[no-untyped-def]
    from medseg_attack.types import Task

    return Task("square", ("organ",))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("corruption('xray')", "expected a modality of mri, ct, ultrasound, rgb for corruption, got 'xray'"),
        ("corruption('ct', 'motion')", "expected a corruption of ct, got 'motion'; choose from each, pixelate"),
        ("corruption(ball=linf(0.1))", "write severity"),
        ("corruption(severity(6))", "expected eps in [0, 5], got 6"),
    ],
)
def test_what_there_is_not_is_refused(spec: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        registry.build(spec, "attack")
    assert sentence in str(error.value)


def test_a_severity_is_the_size_of_any_change() -> None:
    ball, image = Severity(4), torch.rand(2, 1, 5, 5)
    changed = image.clone()
    changed[0] = 0.5
    assert ball.size(changed, image).tolist() == [4.0, 0.0]
    assert Severity(0).project(changed, image).equal(image)


def test_compare_prints_the_ladder(tmp_path: Path) -> None:
    runs = write_attacked(tmp_path, attacks=("fgsm",))
    model = f"own({str(tmp_path / 'scans' / 'nets.py') + ':Net'!r}, dims=2)"
    options = ["--no-checks", "--trust", "--home", tmp_path / "home", "--out", tmp_path / "corrupted"]
    attack = ["--attack", "corruption('ct', 'gaussian_noise')", "--eps", "1", "--eps", "5"]
    medattack("attack", "--data", tmp_path / "data", "--model", model, *attack, *options)
    printed = medattack("compare", runs, tmp_path / "corrupted", "--markdown").stdout.replace("\\", "")
    assert "Natural corruptions" in printed
    assert "ct gaussian_noise" in printed
    table = json.loads(medattack("compare", tmp_path / "corrupted", "--json").stdout)["corruptions"]
    assert [row["kind"] for row in table] == ["ct gaussian_noise", "all"]
    assert table[0]["dice"] < table[0]["clean"]
    refused = medattack(
        "attack",
        "--data",
        tmp_path / "data",
        "--model",
        model,
        "--attack",
        "corruption",
        "--eps",
        "9",
        *options,
        code=2,
    )
    assert refused.stderr.startswith("error: ")


def test_the_ladders_of_rood_mri_have_five_equal_steps() -> None:
    steps = {"rician_noise": (0, 0.8), "bias_field": (0, 1.5), "anisotropy": (1, 10)}
    for kind, (first, last) in steps.items():
        levels = [level for (level,) in LADDERS["mri"][kind].levels]
        assert levels == pytest.approx([first + (last - first) * n / 5 for n in range(6)])
    noise = LADDERS["ct"]["gaussian_noise"]
    assert [noise.at(severity)[0] for severity in (0, 1, 2.5, 5)] == pytest.approx([0, 0.04, 0.1, 0.2])
    assert LADDERS["ct"]["gamma_down"].levels == ((1,), (0.9,), (0.8,), (0.7,), (0.6,), (0.4,))
    assert LADDERS["ct"]["pixelate"].levels[0] == (1,)
    assert LADDERS["ct"]["jpeg_compression"].levels == ((95,), (50,), (30,), (15,), (10,), (7,))
