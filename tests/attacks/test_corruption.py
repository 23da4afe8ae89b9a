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
    steps = {"rician_noise": (0, 0.8), "bias_field": (0, 1.5), "anisotropy": (1, 10), "smoothing": (0, 4)}
    steps |= {"contrast_compression": (1, 0.3), "contrast_expansion": (1, 3)}
    for kind, (first, last) in steps.items():
        levels = [level for (level,) in LADDERS["mri"][kind].levels]
        assert levels == pytest.approx([first + (last - first) * n / 5 for n in range(6)])
    # which lines are weakened, by what share; degrees, pixels and number of movements
    assert LADDERS["mri"]["ghosting"].levels == ((3, 0), *((2 * n + 1, n / 2) for n in range(1, 6)))
    assert LADDERS["mri"]["motion"].levels == ((0, 0, 2), *((n, 2 * n, 2 * n) for n in range(1, 6)))
    noise = LADDERS["ct"]["gaussian_noise"]
    assert [noise.at(severity)[0] for severity in (0, 1, 2.5, 5)] == pytest.approx([0, 0.04, 0.1, 0.2])
    assert LADDERS["ct"]["gamma_down"].levels == ((1,), (0.9,), (0.8,), (0.7,), (0.6,), (0.4,))
    assert LADDERS["ct"]["pixelate"].levels[0] == (1,)
    assert LADDERS["ct"]["jpeg_compression"].levels == ((95,), (50,), (30,), (15,), (10,), (7,))


# Severities 1 to 5 as MedMNIST-C lists them. It gives the width of a blur's kernel, whose deviation is OpenCV's
# 0.3 ((width - 1) / 2 - 1) + 0.8, and the photons of shot noise, whose inverse is the noise. Lengths of motion blurs
# are our own.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "ct": {
        "pixelate": (0.7, 0.6, 0.5, 0.4, 0.35),
        "jpeg_compression": (50, 30, 15, 10, 7),
        "gaussian_noise": (0.04, 0.08, 0.12, 0.16, 0.2),
        "speckle_noise": (0.05, 0.1, 0.2, 0.3, 0.4),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.08),
        "shot_noise": tuple(1 / photons for photons in (200, 100, 50, 25, 15)),
        "gaussian_blur": tuple(0.3 * ((width - 1) / 2 - 1) + 0.8 for width in (11, 13, 15, 17, 21)),
        "brightness_up": (1.2, 1.3, 1.4, 1.5, 1.6),
        "brightness_down": (0.8, 0.75, 0.7, 0.65, 0.6),
        "contrast_up": (1.3, 1.4, 1.6, 1.7, 1.8),
        "contrast_down": (0.8, 0.7, 0.6, 0.55, 0.5),
        "gamma_up": (1.3, 1.4, 1.6, 1.8, 2.0),
        "gamma_down": (0.9, 0.8, 0.7, 0.6, 0.4),
    },
    "ultrasound": {
        "pixelate": (0.3, 0.25, 0.2, 0.15, 0.1),
        "jpeg_compression": (50, 30, 15, 10, 7),
        "speckle_noise": (0.1, 0.15, 0.2, 0.25, 0.3),
        "motion_blur": (5, 7, 9, 13, 17),
        "brightness_up": (1.4, 1.5, 1.6, 1.8, 2.0),
        "brightness_down": (0.55, 0.5, 0.45, 0.4, 0.3),
        "contrast_down": (0.9, 0.8, 0.7, 0.6, 0.4),
    },
    "rgb": {
        "pixelate": (0.7, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (30, 20, 15, 10, 7),
        "gaussian_noise": (0.04, 0.08, 0.12, 0.18, 0.26),
        "speckle_noise": (0.05, 0.15, 0.2, 0.35, 0.45),
        "impulse_noise": (0.01, 0.03, 0.06, 0.09, 0.17),
        "shot_noise": tuple(1 / photons for photons in (60, 25, 18, 10, 5)),
        "defocus_blur": (4, 5, 6, 7, 8),
        "motion_blur": (5, 8, 10, 12, 15),
        "zoom_blur": (0.1, 0.15, 0.2, 0.25, 0.3),
        "brightness_up": (1.1, 1.2, 1.3, 1.4, 1.5),
        "brightness_down": (0.9, 0.8, 0.7, 0.6, 0.5),
        "contrast_up": (1.1, 1.2, 1.3, 1.4, 1.6),
        "contrast_down": (0.8, 0.7, 0.6, 0.5, 0.4),
    },
}


# Severity 0: what a kind, or all kinds that end like it, get for no change; jpeg_compression has no such quality.
UNCHANGED = {"pixelate": 1, "jpeg_compression": 95, "shot_noise": 1e-6, "noise": 0, "blur": 0, "up": 1, "down": 1}


@pytest.mark.parametrize("modality", PUBLISHED)
def test_the_ladders_of_medmnist_c_are_the_published_ones(modality: str) -> None:
    assert set(LADDERS[modality]) == set(PUBLISHED[modality])
    for kind, severities in PUBLISHED[modality].items():
        unchanged = UNCHANGED[kind] if kind in UNCHANGED else UNCHANGED[kind.rpartition("_")[2]]
        levels = [level for (level,) in LADDERS[modality][kind].levels]
        assert levels == pytest.approx([unchanged, *severities], abs=1e-9), kind


@pytest.mark.parametrize("modality", LADDERS)
def test_every_ladder_begins_with_no_change_and_ends_with_one(modality: str) -> None:
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    for kind, ladder in LADDERS[modality].items():
        rng = torch.Generator().manual_seed(1)
        first, last = ((ladder.corrupt(image, ladder.levels[n], rng) - image).square().mean().item() for n in (0, 5))
        assert first < 1e-4 < 5e-4 < last, kind
