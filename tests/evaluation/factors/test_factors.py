"""Factors on images of which they can be computed by hand, and beside the runs that they are to explain."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.evaluation.factors import organs
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Batch, Case, Stack, Task, Window

TASK = Task("organs", ("left", "right"))


class Pointwise(nn.Module):
    """Two logits of each pixel's own value, the second of no gradient in the upper half."""

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[2]) >= image.shape[2] // 2
        return torch.cat([image - 0.5, (image - 0.5) * rows.view(1, 1, -1, 1)], 1)


CARD = {"training_patients": 7, "training": {"encoder_weights": "imagenet"}}
MODEL = SegModel(Pointwise(), TASK, head="sigmoid").eval()


def scan(image: Tensor, *organs: tuple[slice, slice]) -> Batch:
    """Two equal slices of 16 x 16 pixels of 2 x 1 mm, 5 mm apart."""
    target = torch.zeros(2, 16, 16, dtype=torch.bool)
    for k, organ in enumerate(organs):
        target[k][organ] = True
    cases = [
        Case(f"s{n}", "s", "p", image[None], target, (2.0, 1.0), Window(0.0, 100.0), Stack(n, 2, 5.0)) for n in range(2)
    ]
    return Batch.of(cases)


BOX = slice(4, 8), slice(2, 6)


def factor(name: str, batch: Batch) -> list[float]:
    return list(registry.build(name, "factor")(batch, MODEL, CARD).tolist())


def test_volume_is_pixels_times_their_size() -> None:
    volume, absent = factor("organ_volume", scan(torch.zeros(16, 16), BOX))
    assert volume == pytest.approx(2 * 16 * 2 * 1 * 5 / 1000)
    assert absent == 0


def test_the_volume_of_a_whole_scan_is_that_of_its_slices() -> None:
    target = torch.zeros(2, 3, 16, 16, dtype=torch.bool)
    target[(0, slice(1, 3), *BOX)] = True
    case = Case("s", "s", "p", torch.zeros(1, 3, 16, 16), target, (5.0, 2.0, 1.0), Window(0.0, 100.0))
    assert factor("organ_volume", Batch.of([case])) == pytest.approx([2 * 16 * 2 * 1 * 5 / 1000, 0.0])


def test_luminosity_is_that_of_the_body() -> None:
    image = torch.zeros(16, 16)
    image[2:14, 2:14] = 0.6
    image[2:14, 2:8] = 0.4
    (mean, _), (spread, _) = (factor(name, scan(image, BOX)) for name in ("luminosity", "luminosity_spread"))
    assert mean == pytest.approx(0.5, abs=0.02)  # the body's median filter rounds its corners
    assert spread == pytest.approx(0.1, abs=0.02)


def test_contrast_is_in_standard_deviations_of_the_surroundings() -> None:
    image = torch.zeros(16, 16)
    image[::2] = 0.2  # around the organ: as many pixels of 0 as of 0.2
    image[BOX] = 0.6
    inside, absent = factor("contrast_to_noise(ring=1)", scan(image, BOX))
    ring = torch.tensor([0.0] * 16 + [0.2] * 16)  # 8 above and below, 8 at the sides, on two slices
    assert inside == pytest.approx(float((0.6 - ring.mean()) / ring.std()), rel=1e-6)
    assert absent != absent


def test_two_pixels_are_surroundings_and_three_steps_are_meant_where_nothing_is_said() -> None:
    batch = scan(torch.rand(16, 16, generator=torch.Generator().manual_seed(0)), (slice(0, 16), slice(0, 16)), BOX)
    batch.target[:, 0, 0, 0] = False
    batch.image[:] = 0.5
    batch.image[:, 0, 0, 0] = torch.tensor([0.1, 0.3])
    corner, _ = factor("contrast_to_noise(ring=1)", batch)
    assert corner == pytest.approx(0.3 / (0.02**0.5))  # of 0.1 and 0.3: their mean is 0.2, their variance 0.02
    batch.image[:] = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    assert factor("contrast_to_noise", batch) == factor("contrast_to_noise(ring=3)", batch)
    assert factor("gradient_concentration", batch) == factor("gradient_concentration(margin=3)", batch)


def test_an_organ_of_one_slice_has_a_concentration() -> None:
    batch = scan(torch.full((16, 16), 0.5), BOX)
    batch.target[1] = False
    there, absent = factor("gradient_concentration(margin=0)", batch)
    assert 0 < there < 1
    assert absent != absent


def test_the_gradient_of_a_pointwise_model_is_spread_and_that_of_its_lower_half_is_there() -> None:
    image = torch.full((16, 16), 0.5)
    lower = slice(8, 16), slice(0, 16)
    _, right = factor("gradient_concentration(margin=0)", scan(image, BOX, lower))
    assert right == pytest.approx(1.0)
    left, absent = factor("gradient_concentration(margin=0)", scan(image, BOX))
    whole, numerator = 128 + 16 + 1, 2 * 8 + 1  # of the soft Dice where every probability is 0.5
    assert left == pytest.approx(16 * (2 * whole - numerator) / (16 * (2 * whole - numerator) + 240 * numerator))
    assert absent != absent
    (all_of_it, _) = factor("gradient_concentration(margin=30)", scan(image, BOX))
    assert all_of_it == pytest.approx(1.0)


class Noting(Pointwise):
    """Notes how many slices it gets at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(len(image))
        return super().forward(image)


def test_the_gradient_of_a_long_scan_is_taken_16_slices_at_a_time_and_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = scan(torch.full((16, 16), 0.5), BOX, (slice(8, 12), slice(2, 6)))
    values = torch.linspace(0.2, 0.8, 20).view(20, 1, 1, 1)
    long = replace(batch, image=values.expand(20, 1, 16, 16), target=batch.target[:1].repeat(20, 1, 1, 1))
    long = replace(long, cases=batch.cases[:1] * 20)
    net = Noting()
    model, measure = SegModel(net, TASK, head="sigmoid").eval(), registry.build("gradient_concentration", "factor")
    parts = measure(long, model, CARD)
    assert net.sizes == [16, 4]
    monkeypatch.setattr(organs, "SLICES", 20)
    torch.testing.assert_close(parts, measure(long, model, CARD))
    assert net.sizes == [16, 4, 20]


def test_parameters_are_those_of_the_network() -> None:
    model = SegModel(nn.Conv2d(1, 2, 3, padding=1), TASK, head="sigmoid").eval()
    assert registry.build("parameters", "factor")(scan(torch.zeros(16, 16), BOX), model, CARD).tolist() == [20, 20]


def test_facts_of_the_training_are_those_of_the_card_and_nan_of_a_network_from_elsewhere() -> None:
    batch = scan(torch.zeros(16, 16), BOX)
    assert [factor(name, batch) for name in ("classes", "training_patients", "pretrained")] == [[2, 2], [7, 7], [1, 1]]
    for name in ("training_patients", "pretrained"):
        assert registry.build(name, "factor")(batch, MODEL, {"label": "own"}).isnan().all()
    assert registry.build("training_patients", "factor")(batch, MODEL, {"training_patients": None}).isnan().all()
    random = {"training": {"encoder_weights": ""}}
    assert registry.build("pretrained", "factor")(batch, MODEL, random).tolist() == [0, 0]


def test_every_factor_has_a_number_per_class_and_leaves_the_scan_as_it_is() -> None:
    batch = scan(torch.rand(16, 16, generator=torch.Generator().manual_seed(0)), BOX)
    before = batch.image.clone()
    for name in registry.names("factor"):
        assert len(factor(name, batch)) == 2, name
    assert torch.equal(batch.image, before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("factors")
    phantom = "phantom(patients=8, slices=2, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--out", root / "data", "--test", "0.75")
    medattack(
        *("train", "--data", root / "data", "--model", "unet_small(channels=(4, 8))", "--epochs", "1"),
        *("--out", root / "model"),
    )
    medattack(
        *("attack", "--data", root / "data", "-m", root / "model", "--attack", "fgsm", "--eps", "0.1", "--no-checks"),
        *("--out", root / "runs"),
    )
    return root / "runs"


def test_a_card_says_how_many_patients_its_model_was_trained_on(runs: Path) -> None:
    prepared = open_prepared(runs.parent / "data")
    card = json.loads((runs.parent / "model" / "card.json").read_text())
    assert card["training_patients"] == len({ref.group for ref in prepared.refs("train")}) > 0
    assert registry.build("training_patients", "factor")(scan(torch.zeros(16, 16)), MODEL, card).tolist() == [1, 1]


def test_compare_shows_factors_beside_the_table(runs: Path) -> None:
    words = "compare", runs, "--factor", "luminosity", "--factor", "contrast_to_noise(ring=2)", "--factor", "parameters"
    content = json.loads(medattack(*words, "--json").stdout)
    assert {row["factor"] for row in content["factors"]} == {"luminosity", "contrast_to_noise(ring=2)"}
    assert {row["organ"] for row in content["factors"]} == {"mean", "large_bowel", "small_bowel", "stomach"}
    assert {row["n"] for row in content["factors"]} == {6}
    shown = " ".join(medattack(*words).stdout.split())
    assert "A correlation is no cause. The same in all runs, and left out: parameters." in shown


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("brightness", "unknown factor: expected one that is registered, got 'brightness'"),
        ("parameters", "expected runs between whose scans or models parameters differs, got one value; give more runs"),
    ],
)
def test_a_factor_that_is_none_or_the_same_everywhere_is_refused(runs: Path, name: str, sentence: str) -> None:
    assert sentence in " ".join(medattack("compare", runs, "--factor", name, code=2).stderr.split())


@pytest.mark.slow  # three processes that load torch
def test_factors_of_runs_of_ones_own_network_are_measured_where_its_code_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Conv2d(1, 3, 1)\n")
    words = ["--home", "home", "--device", "cpu", "--no-control", "--no-checks", "--split", "all", "--out", "run"]
    attack = ["attack", "-m", "own('net.py:build')", "--attack", "fgsm", *words]
    prepare = ["prepare", "scans", "--format", "phantom(patients=4, slices=2, side=24)", "--home", "home"]
    compare = ["compare", "run", "--factor", "luminosity", "--home", "home"]
    medattack(*prepare)
    medattack(*attack)
    said = ""
    for command, code in ((compare, 2), ([*compare, "--trust"], 0), (compare, 0)):  # in a process each
        asked = [sys.executable, "-m", "medseg_attack", *command]
        result = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        said += " ".join(result.stderr.split())
    assert "add --trust" in said
