"""The ejection fraction between two phases: closed forms, and phases from the files of ACDC to the table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import medattack
from helpers.scans import write_pair

from medseg_attack.certificates.smoothing.ejection_fraction import EjectionFraction
from medseg_attack.data.datasets.source import open_source
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, Case, Phase, Stack, Task, Window

TASK = Task("t", ("lv",))
SIDE = 40


class Bar(torch.nn.Module):
    """Column j is in the organ where the image's mean is at least j / columns: its volume is linear in the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = (torch.arange(x.shape[-1]) + 0.5) / x.shape[-1]
        return (20 * (x.mean((1, 2, 3), keepdim=True) - steps)).expand_as(x)


def heart(first: float, last: float) -> Batch:
    phases: tuple[Phase, ...] = ("ED", "ES")
    truth = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    cases = [
        Case(phase, phase, "p", torch.full((1, SIDE, SIDE), grey), truth, (1.0, 1.0), Window(0, 1), Stack(0, 1, 1.0))
        for phase, grey in zip(phases, (first, last), strict=True)
    ]
    return Batch.of([Case(**{**vars(case), "phase": phase}) for case, phase in zip(cases, phases, strict=True)])


def test_of_a_volume_that_is_linear_the_interval_is_as_wide_as_the_attack_moves_it() -> None:
    """Both volumes move by r / side of a mean, if all of the radius is spent on it; end diastole is at its full."""
    sigma, radius, scan = 0.8, 0.8, heart(1.3, 0.5)
    certificate = EjectionFraction(sigma, 600, 0.01)
    with frozen(SegModel(Bar(), TASK)) as model:
        observed = certificate.observe(model, scan, [radius], 0, 64)
        (bound,) = certificate.bounds(observed, scan, model, [radius])
        moved = [
            certificate.bounds(certificate.observe(model, heart(1.3, 0.5 + shift), [0.0], 1, 64), scan, model, [0.0])
            for shift in (radius / SIDE, -radius / SIDE)
        ]
    assert bound.clean == pytest.approx(50.0)
    (least,), (most,) = moved
    assert bound.low <= least.value <= bound.low + 2.6  # a column is 2.5 %
    assert bound.high - 2.6 <= most.value <= bound.high
    assert bound.high - bound.low >= 2.5


@pytest.mark.parametrize(("sign", "direction"), [(1, "up"), (-1, "down")])
def test_the_attack_moves_the_fraction_both_ways(sign: int, direction: str) -> None:
    certificate, scan = EjectionFraction(0.1, 50, 0.1), heart(0.9, 0.45)
    with frozen(SegModel(Bar(), TASK)) as model:
        up, down = certificate.attacked(model, scan, 4.0, 0)
        changed = Batch(up if sign > 0 else down, scan.target, scan.cases)
        before, after = (certificate.observe(model, each, [0.0], 0, 64).clean for each in (scan, changed))
    assert sign * (after - before) > 2, direction


@pytest.mark.parametrize("mm", [0.1, 10.0])
def test_a_fraction_is_the_same_of_a_large_ventricle_and_of_one_below_a_millilitre(mm: float) -> None:
    scan = heart(0.9, 0.45)
    sized = Batch.of([replace(case, spacing_mm=(mm, mm)) for case in scan.cases])
    with frozen(SegModel(Bar(), TASK)) as model:
        own, other = (EjectionFraction(0.01, 4, 0.5).observe(model, each, [0.0], 0, 64) for each in (scan, sized))
    assert own.clean == other.clean == pytest.approx(50.0)
    assert torch.equal(own.drawn, other.drawn)


def test_an_empty_ventricle_has_the_fraction_0() -> None:
    certificate, scan = EjectionFraction(0.01, 4, 0.5), heart(-1.0, 0.5)
    with frozen(SegModel(Bar(), TASK)) as model:
        assert certificate.observe(model, scan, [0.0], 0, 64).clean == 0


def test_an_organ_that_is_not_there_and_two_grids_are_refused() -> None:
    with pytest.raises(InputError, match="expected an organ among liver for ejection_fraction, got 'lv'"):
        EjectionFraction().require(0.01, Task("t", ("liver",)), [(8, 8)])
    with pytest.raises(InputError, match=r"expected both phases of a patient on one grid.*--size"):
        EjectionFraction().require(0.01, TASK, [(8, 8), (9, 9)])


def write_heart(root: Path, patients: int = 6, info: str = "ED: 1\nES: 12\nGroup: DCM\n") -> Path:
    """Patients of ACDC with two frames each, whose ventricle is smaller at end systole."""
    rows, columns = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
    for number in range(1, patients + 1):
        folder = root / "training" / f"patient{number:03d}"
        for frame, radius in ((1, 8), (12, 5)):
            distance = np.hypot(rows - 12, columns - 12)
            mask = np.select([distance < radius - 2, distance < radius], [3, 2], 0)
            mask[:3, :3] = 1
            mask = np.repeat(mask[..., None], 3, 2)
            image = (100 * mask + np.random.default_rng(number).integers(0, 20, mask.shape)).astype(np.int16)
            stem = folder / f"patient{number:03d}_frame{frame:02d}"
            write_pair(
                stem.with_name(f"{stem.name}.nii.gz"), stem.with_name(f"{stem.name}_gt.nii.gz"), image=image, mask=mask
            )
        (folder / "Info.cfg").write_text(info)
    return root


@pytest.mark.parametrize(
    ("info", "phases"),
    [
        ("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\n", ["ED", "ES"]),
        ("ES: 1\r\nED: 12\r\n", ["ES", "ED"]),
        ("ED: 1\nES: twelve\n", ["ED", ""]),
        ("NoED: 1\n", ["", ""]),
        ("", ["", ""]),
    ],
)
def test_phases_are_those_of_info_cfg(tmp_path: Path, info: str, phases: list[str]) -> None:
    source = open_source("acdc", write_heart(tmp_path, 1, info))
    assert [scan.phase for scan in source.scans] == phases


class TestCommand:
    def test_from_files_to_the_table(self, tmp_path: Path) -> None:
        medattack("prepare", write_heart(tmp_path / "acdc"), "--format", "acdc", "--out", tmp_path / "data")
        record = json.loads((tmp_path / "data" / "scans" / "patient001_frame12.json").read_text())
        assert record["phase"] == "ES"
        model = ("--model", "unet_small(channels=(4, 8))", "--epochs", 1, "--out", tmp_path / "model")
        medattack("train", "--data", tmp_path / "data", *model)
        words = ("certify", "--data", tmp_path / "data", "--model", tmp_path / "model", "--check", 1)
        words += ("--certificate", "ejection_fraction(sigma=0.1, draws=60, alpha=0.01)", "--limit", 1, "--radius", 0.02)
        result = medattack(*words, "--out", tmp_path / "out", "--csv", tmp_path / "bounds.csv")
        caption = " ".join(result.stdout.split())
        assert "Least and greatest ejection fraction in % per pair, certified" in caption
        assert "1 pair of 1 patient." in caption
        assert len((tmp_path / "bounds.csv").read_text().splitlines()) == 2  # both scans of one patient are one row

    def test_without_phases_it_is_refused_and_prepared_again_it_has_them(self, tmp_path: Path) -> None:
        root = write_heart(tmp_path / "acdc", info="")
        prepare = ("prepare", root, "--format", "acdc", "--out", tmp_path / "data")
        medattack(*prepare)
        before = json.loads((tmp_path / "data" / "dataset.json").read_text())["fingerprint"]
        medattack(
            "train", "--data", tmp_path / "data", "--model", "unet_small(channels=(4, 8))", "--epochs", 1, "--out",
            tmp_path / "model",
        )  # fmt: skip
        words = ("certify", "--data", tmp_path / "data", "--model", tmp_path / "model", "--plan")
        words += ("--certificate", "ejection_fraction")
        result = medattack(*words, code=2)
        assert "expected scans of end diastole and end systole of a patient" in " ".join(result.stderr.split())
        assert "Info.cfg" in result.stderr
        write_heart(root)
        medattack(*prepare)
        assert json.loads((tmp_path / "data" / "dataset.json").read_text())["fingerprint"] == before
        assert "scans     2" in medattack(*words, "--split", "all", "--limit", 9).stdout
