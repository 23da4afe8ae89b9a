"""Fits of attacks that learn first: their batches, the passes of a whole fit, and what a run's folder says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.evaluation import fitting
from medseg_attack.evaluation.fitting import Batches, check_fit, fit_faults, fit_once, fit_seconds, fitted, must_fit
from medseg_attack.models.checkpoints import save_tensors
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.rows import WITHOUT_ANSWER, WITHOUT_GRADIENT
from medseg_attack.threat.budgets import parse_budget
from medseg_attack.types import Adversarial, Batch, Case, CaseRef, Mask, Model


class Data:
    def read(self, ref: CaseRef) -> Case:
        side = ref.shape[0]
        image = torch.full((1, side, 4), float(ref.id[-2:]) / 100)
        return replace(blobs.case(0), id=ref.id, image=image, target=torch.ones(2, side, 4).bool())


REFS = [CaseRef(f"c{n:02d}", "v", f"p{n % 3}", (4 + n % 2, 4)) for n in range(35)]


def test_a_batch_of_a_fit_is_at_most_eight_cases_of_one_shape_in_the_order_of_their_names() -> None:
    batches = Batches.of(Data(), REFS[::-1], torch.device("cpu"))
    names = [[ref.id for ref in batch] for batch in batches.refs]
    even, odd = ([f"c{n:02d}" for n in range(first, 35, 2)] for first in (0, 1))
    assert names == [even[:8], even[8:16], even[16:], odd[:8], odd[8:16], odd[16:]]
    assert len(batches) == 6
    assert batches[3].image[:, 0, 0, 0].tolist() == pytest.approx([n / 100 for n in range(1, 16, 2)])


@dataclass(frozen=True)
class Learner:
    """Learns the sum of all images with two forward passes and a gradient of each batch, and adds it."""

    learned: Any = None
    ball: Any = None

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        total = torch.tensor(float(seed))
        for n in range(len(batches)):
            image = batches[n].image.clone().requires_grad_()
            model(image)
            torch.autograd.grad(model(image).sum(), image)
            total = total + batches[n].image.sum()
        return {"total": total}

    def with_learned(self, learned: Any) -> "Learner":
        return replace(self, learned=learned)

    def __call__(self, model: Model, image: Tensor, target: Mask, seeds: Sequence[int]) -> Adversarial:
        raise AssertionError


class Pointwise(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, -x), 1)


MODEL = SegModel(Pointwise(), blobs.TASK).eval()


@pytest.fixture(autouse=True)
def _ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once whenever it is read."""
    ticks = count(7)
    monkeypatch.setattr(fitting, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def test_the_cost_of_a_fit_to_many_is_that_of_one_batch_by_their_number() -> None:
    batch = Batch.of([Data().read(ref) for ref in REFS[:6:2]])
    with frozen(MODEL) as model:
        attack, cost = fit_once(Learner(), model, batch, 30)
    assert must_fit(attack)
    assert float(attack.learned["total"]) == pytest.approx(float(batch.image.sum()))  # type: ignore[attr-defined]
    assert (cost.forwards, cost.backwards) == (60, 30)  # two passes and a gradient for each of 30
    assert cost.seconds == pytest.approx(30 / 3)  # a second for three


def test_what_is_learned_is_kept_and_read_again_and_refused_for_another_run(tmp_path: Path) -> None:
    batches = Batches.of(Data(), REFS[:9], torch.device("cpu"))
    folder = RunFolder.open(tmp_path / "run", {"seed": 3})
    expected = 3 + sum(float(batches[n].image.sum()) for n in range(len(batches)))
    with frozen(MODEL) as model:
        first = fitted(Learner(), model, batches, folder, 3)
        again = fitted(Learner(), model, Batches.of(Data(), (), torch.device("cpu")), folder, 4)
    for attack in (first, again):
        assert float(attack.learned["total"]) == pytest.approx(expected)  # type: ignore[attr-defined]
    assert [file.name for file in folder.path.glob("*.safetensors")] == ["learned-0.safetensors"]
    assert fit_faults(folder) == {}
    assert fit_seconds(folder) == 1
    other = RunFolder.open(tmp_path / "other", {"seed": 4})
    (folder.path / "learned-0.safetensors").rename(other.path / "learned-0.safetensors")
    with frozen(MODEL) as model, pytest.raises(InputError, match="what was learned for this run"):
        fitted(Learner(), model, batches, other, 4)


def test_seconds_of_fits_are_added_and_cases_with_faults_are_named(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", {"seed": 0})
    assert fit_seconds(folder) == 0
    facts = ({"seconds": "1.5", WITHOUT_GRADIENT: "c1"}, {"seconds": "20", WITHOUT_GRADIENT: "c2", WITHOUT_ANSWER: ""})
    for n, each in enumerate(facts):
        save_tensors(folder.path / f"learned-{n}.safetensors", {"a": torch.zeros(1)}, each)
    assert fit_seconds(folder) == 21.5
    assert list(fit_faults(folder).values()) == ["c1, c2"]
    for text in ("nan", "-1", "1e9", "1.", "1" * 13):
        save_tensors(folder.path / "learned-0.safetensors", {"a": torch.zeros(1)}, {"seconds": text})
        with pytest.raises(InputError, match=f"expected the seconds of a fit in .*, got '{text}'"):
            fit_seconds(folder)


def test_patients_of_a_fit_are_not_scored_and_one_perturbation_has_one_size() -> None:
    budget = parse_budget("5HU")
    check_fit("a", None, REFS[0:9:3], REFS[1:9:3])
    check_fit("a", budget, (), REFS)
    with pytest.raises(InputError, match="got p0 among both"):
        check_fit("a", None, REFS[:2], REFS[3:6:2])
    with pytest.raises(InputError, match="got 5HU; write for instance 4/255"):
        check_fit("a", budget, REFS[0:9:3], REFS[1:9:3])
