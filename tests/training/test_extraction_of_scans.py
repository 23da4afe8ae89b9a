"""Extraction of a network of whole scans: queries are scans, copies learn from windows, from volumes from all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.extracting import worth
from medseg_attack.evaluation.monitoring import watch
from medseg_attack.models import checkpoints
from medseg_attack.models.checkpoints import build_model
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.training.extraction.answers import Exchange, answered
from medseg_attack.training.extraction.loop import extract
from medseg_attack.training.extraction.options import Answers, Extraction
from medseg_attack.training.extraction.selection import deepest_features, refs_of
from medseg_attack.training.extraction.student import fit, part_of
from medseg_attack.training.losses import training_loss
from medseg_attack.types import Image, Task

CPU = torch.device("cpu")
COPY = "monai(UNet(channels=(4, 8), num_res_units=0), window=(4, 16, 16))"


class Bright(nn.Module):
    """The first organ is what is bright, on each voxel by itself."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Image) -> Tensor:
        return torch.cat([20 * (x - level) for level in torch.linspace(0.3, 0.6, self.classes)], 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("scans")
    phantom = "phantom(patients=12, slices=5, side=24)"
    medattack("prepare", root / "scans", "--format", phantom, "--out", root / "data")
    return open_prepared(root / "data")


@pytest.fixture
def victim(data: Prepared) -> SegModel:
    net = SlidingWindow(Bright(len(data.task.classes)), (4, 12, 12))
    return SegModel(net, data.task, dims=3).eval()


@pytest.mark.parametrize("answers", ["probabilities", "masks", "volumes"])
def test_a_copy_learns_from_whole_scans(answers: Answers, data: Prepared, victim: SegModel, tmp_path: Path) -> None:
    plan = Extraction(COPY, queries=6, answers=answers, steps=30, lr=1e-2, batch_size=2)
    losses = list(extract(plan, victim, "hash", data, tmp_path / "copy", CPU))
    assert losses[-1] < 0.9 * losses[0]
    queries = json.loads((tmp_path / "copy" / "queries.json").read_text())
    assert queries["count"] == len(set(queries["cases"])) == 6
    scans = {ref.id for ref in data.refs("train", 0, 3)}
    assert set(queries["cases"]) <= scans
    assert json.loads((tmp_path / "copy" / "card.json").read_text())["dims"] == 3


def test_a_copy_of_a_threshold_agrees_with_it_on_unseen_scans(data: Prepared, victim: SegModel, tmp_path: Path) -> None:
    plan = Extraction(COPY, queries=8, answers="masks", steps=50, lr=3e-2, batch_size=2)
    list(extract(plan, victim, "hash", data, tmp_path / "copy", CPU))
    copy = checkpoints.load(tmp_path / "copy", data.task, CPU)
    measured = worth(copy, victim, data, 4 / 255, CPU)
    assert measured["fidelity"] > 0.7
    assert measured["patients"] == len({ref.group for ref in data.refs("test", 0, 3)})


def test_the_same_weights_have_fidelity_1_and_transfer_all(data: Prepared, victim: SegModel) -> None:
    measured = worth(victim, victim, data, 0.05, CPU)
    assert measured["fidelity"] == measured["transfer"] == 1
    assert measured["victim"] > measured["own"] == measured["transferred"]


def test_a_part_of_an_answer_belongs_to_the_part_of_the_image_and_holds_an_organ_more_often() -> None:
    """An answer that is the image itself; the organ is one voxel of 1000, which a part of 27 seldom meets by chance."""
    image = -torch.rand(1, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    image[0, 1, 8, 5] = 1.0
    rng, task = torch.Generator().manual_seed(1), Task("square", ("organ",))
    parts = [part_of(Exchange(image, image), (3, 3, 3), task, rng) for _ in range(300)]
    assert all(part.image.shape == (1, 3, 3, 3) and torch.equal(part.image, part.answer) for part in parts)
    share = sum(bool((part.answer > 0).any()) for part in parts) / len(parts)
    assert 0.58 < share < 0.75
    assert len({tuple(part.image.flatten().tolist()) for part in parts}) > 50
    whole = Exchange(image, image)
    assert part_of(whole, (10, 10, 10), task, rng) is whole


def test_of_volumes_a_windowed_copy_sees_all_windows(data: Prepared, victim: SegModel, tmp_path: Path) -> None:
    """Its first loss is the squared error of its soft volumes on whole scans."""
    (ref, *_) = data.refs("train", 0, 3)
    image = data.read(ref).image[None]
    answer = answered(Extraction(answers="volumes"), victim, image)
    plan = Extraction(COPY, queries=1, answers="volumes", steps=1, batch_size=2)
    torch.manual_seed(0)
    student = build_model(COPY, data.task)
    with torch.no_grad():
        soft = student.eval()(image).sigmoid().flatten(2).sum(2)
    expected = float(((soft - answer) / answer.clamp(min=1)).square().mean())
    (loss,) = fit(plan, student, [Exchange(image[0], answer[0])], CPU)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_scans_smaller_than_the_window_of_the_copy_are_padded_as_in_its_use(data: Prepared, victim: SegModel) -> None:
    """Deeper and wider than every scan: the answer of the copy in training is the one that it gives in use."""
    spec = "monai(UNet(channels=(4, 8), num_res_units=0), window=(8, 40, 40))"
    torch.manual_seed(0)
    student = build_model(spec, data.task)
    (ref, *_) = data.refs("train", 0, 3)
    image = data.read(ref).image[None]
    answer = answered(Extraction(answers="masks"), victim, image)
    with torch.no_grad():
        used = student.eval()(image)
    expected = float(training_loss("dice_ce", data.task)(used, answer))
    plan = Extraction(spec, queries=1, answers="masks", steps=1, batch_size=2)
    (loss,) = fit(plan, student, [Exchange(image[0], answer[0])], CPU)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_scans_are_chosen_by_features_of_all_windows(data: Prepared) -> None:
    torch.manual_seed(0)
    student = build_model(COPY, data.task)
    (ref, *_) = data.refs("train", 0, 3)
    image = data.read(ref).image[None]
    changed = image.clone()
    changed[:, :, 0, 0, 0] += 0.5  # the first window alone
    first, second = (deepest_features(student, x) for x in (image, changed))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    plan = Extraction(COPY, queries=4, selection="k_centre")
    assert len({ref.id for ref in refs_of(plan, data, student)}) == 4


def test_a_monitor_watches_a_stream_of_scans(data: Prepared) -> None:
    torch.manual_seed(0)
    victim = build_model(COPY, data.task)
    queries = data.refs("test", 0, 3)

    class Inverted:
        def read(self, ref: object) -> object:
            case = data.read(ref)  # type: ignore[arg-type]
            return replace(case, image=1 - case.image)

    watched = watch(victim, data, Inverted(), queries, 0, CPU)  # type: ignore[arg-type]
    assert watched.window == len(queries)
    assert watched.alarm == len(queries)


def test_the_command_counts_scans_and_refuses_a_copy_of_slices(data: Prepared, tmp_path: Path) -> None:
    words = ["extract", "--data", data.root, "--home", tmp_path / "home", "--queries", 3, "--steps", 2]
    assert data.root is not None
    (tmp_path / "net.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Conv3d(1, 3, 1)\n"
    )
    victim = f"own({str(tmp_path / 'net.py') + ':net'!r}, dims=3)"
    words += ["--victim", victim, "--trust"]
    result = medattack(*words, "--out", tmp_path / "flat", code=2)
    assert "expected a copy of scans, which the victim takes, got unet_small of slices" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "flat").exists()
    result = medattack(*words, "--out", tmp_path / "copy", "--model", COPY, "--monitor", data.root, "--json")
    facts = json.loads(result.stdout)
    assert (facts["queries"], facts["of"]) == (3, "scans")
    assert facts["monitor"]["window"] == 3
