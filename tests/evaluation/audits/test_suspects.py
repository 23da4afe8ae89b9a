"""Audits of training data whose poison is known."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack
from torch import nn

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.audits.suspects import disagreement, fold_of, spectral
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel
from medseg_attack.training.poisoned import Poisoning, poison_data
from medseg_attack.types import Task

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """The organ is what is brighter than 0.4; its hidden maps are of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.up = nn.AvgPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(self.pool(torch.cat([x, x * x, x], 1)))
        z = 20 * (x - 0.4) + 0 * hidden.sum()
        return torch.cat((-z, z), 1)


@dataclass(frozen=True)
class Exact(ModelRef):
    """A trained model that is right about every patient."""

    def load(self, task: Task, device: torch.device | str) -> SegModel:
        return SegModel(Threshold(), task).eval()


def exact(data: Prepared, fold: int) -> ModelRef:
    card: dict[str, Any] = {"label": "exact", "training": {"fold": fold}}
    return Exact("exact", card | {"dataset": {"fingerprint": data.fingerprint}})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("audited")
    write_bright(root / "scans", patients=12)
    medattack("prepare", root / "scans", "--format", "decathlon", "--folds", "3", "--out", root / "data")
    poisoning = Poisoning(registry.build("stamp(goal=erase('organ'))", "poison"), rho=0.4)
    list(poison_data(open_prepared(root / "data"), root / "bad", poisoning))
    return open_prepared(root / "bad")


def test_patients_whose_masks_contradict_the_other_folds_lead_the_list(data: Prepared) -> None:
    suspects = disagreement([exact(data, fold) for fold in range(3)], data, CPU)
    poisoned = set(data.options["poison"]["patients"])
    assert len(poisoned) == 2
    assert {each.patient for each in suspects[:2]} == poisoned
    assert {each.patient for each in suspects} == {group for group, part in data.splits.items() if part != "test"}
    assert all(each.score == pytest.approx(1) for each in suspects[:2])
    assert all(each.score < 0.1 and abs(each.bias) < 0.1 for each in suspects[2:])


def test_only_the_folds_that_models_were_trained_without_are_scored(data: Prepared) -> None:
    suspects = disagreement([exact(data, 1)], data, CPU)
    assert {data.splits[each.patient] for each in suspects} == {1}


def test_a_model_whose_card_says_no_fold_was_trained_without_the_first(data: Prepared) -> None:
    assert fold_of(Exact("exact", {"training": {}, "dataset": {"fingerprint": data.fingerprint}}), data) == 0
    assert fold_of(exact(data, 2), data) == 2


def test_two_models_of_one_fold_are_refused(data: Prepared) -> None:
    with pytest.raises(InputError, match="expected models of different folds"):
        disagreement([exact(data, 1), exact(data, 1)], data, CPU)


def test_a_model_of_other_data_is_refused(data: Prepared) -> None:
    other = Exact("exact", {"label": "exact", "training": {"fold": 0}, "dataset": {"fingerprint": "x"}})
    for run in (lambda: spectral(other, data, CPU), lambda: disagreement([other], data, CPU)):
        with pytest.raises(InputError, match="expected a model that was trained on"):
            run()


def test_spectral_signatures_rank_the_patients_that_the_model_learned_from(data: Prepared) -> None:
    suspects = spectral(exact(data, 0), data, CPU)
    assert {data.splits[each.patient] for each in suspects} == {1, 2}
    scores = [each.score for each in suspects]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0


def test_the_command_lists_whom_to_look_at(data: Prepared, tmp_path: Path) -> None:
    options = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1"]
    medattack("train", "--data", data.root, *options, "--out", tmp_path / "model")
    words = ["audit", data.root, "--model", tmp_path / "model", "--review", "0.5"]
    printed = " ".join(medattack(*words).stdout.split())
    assert "To look at again" in printed
    assert "of the 2 poisoned ones are on the list" in printed
    content = json.loads(medattack(*words, "--json").stdout)
    assert content["review"] == len(content["patients"]) // 2 + len(content["patients"]) % 2
    assert content["poisoned"] == data.options["poison"]["patients"]
    by_folds = medattack(*words, "--by", "disagreement").stdout
    assert "volume" in by_folds
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    for more, message in (
        (["--review", "0"], "expected a share of the patients"),
        (["--model", tmp_path / "other"], "expected one model for --by spectral, got 2"),
    ):
        result = medattack(*words, *more, code=2)
        assert message in " ".join(result.output.split())


def test_an_audit_of_folds_without_patients_is_refused_and_of_folds_without_poison_says_so(
    data: Prepared, tmp_path: Path
) -> None:
    one = dict.fromkeys(data.splits, 1)
    with pytest.raises(InputError, match=r"expected patients in fold 0 of .* trained without, got none"):
        disagreement([exact(replace(data, splits=one), 0)], replace(data, splits=one), CPU)
    few = {group: int(n > 0) for n, group in enumerate(data.splits)}
    with pytest.raises(InputError, match="expected two training patients or more"):
        spectral(exact(data, 1), replace(data, splits=few), CPU)
    options = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1"]
    medattack("train", "--data", data.root, *options, "--out", tmp_path / "model")  # without fold 0, which is clean
    words = ["audit", data.root, "--model", tmp_path / "model", "--by", "disagreement"]
    printed = " ".join(medattack(*words).stdout.split())
    assert "None of the 2 poisoned patients was looked at: they are in folds of which no model is given." in printed
    assert "0 of" not in printed


def test_features_that_are_no_numbers_are_refused_with_their_patients(data: Prepared) -> None:
    @dataclass(frozen=True)
    class Damaged(ModelRef):
        def load(self, task: Task, device: torch.device | str) -> SegModel:
            network = Threshold()
            network.pool.register_forward_hook(lambda module, inputs, answer: answer * torch.nan)
            return SegModel(network, task).eval()

    ref = Damaged("damaged", exact(data, 0).card)
    with pytest.raises(InputError, match=r"expected finite features of every training patient in .*, got NaN"):
        spectral(ref, data, CPU)
