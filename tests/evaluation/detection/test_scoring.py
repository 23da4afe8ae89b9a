"""Scores of a detector: a patient's from those of slices, counts of pixels, and what exposures are called."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.orthogonal import Orthogonal
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.base import Calibrated, Detector, Training
from medseg_attack.errors import InputError
from medseg_attack.evaluation.detection.fitting import _own_attack, fit
from medseg_attack.evaluation.detection.scoring import (
    Detection,
    Exposure,
    _evading,
    _iterated,
    _pixels,
    control_key,
    per_patient,
)
from medseg_attack.evaluation.detection.screening import scan_scores
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.budgets import parse_budget
from medseg_attack.types import Batch, Case, CaseRef, Model, Task

DATA = Task("toy", ("background", "a", "b"), exclusive=True)


@dataclass(frozen=True)
class Brightest(Detector):
    """The brightest pixel of a case, in whole tenths."""

    reason: ClassVar[str] = "bright"

    def observe(self, model: Model, image: Tensor, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        return model(image), (10 * image.flatten(1).amax(1, keepdim=True)).round()

    def score(self, statistics: Tensor, cases: Sequence[Case]) -> Tensor:
        return statistics[:, 0]


def bright(*values: float, groups: str = "", volumes: str = "") -> Batch:
    """Cases of one value each; two classes of a model that finds what is above 0.45, and what is above 0.75."""
    cases = [blobs.case(n) for n in range(len(values))]
    for n, value in enumerate(values):
        facts = {"id": f"c{n}", "group": (groups or "abcdef")[n], "volume": (volumes or "uvwxyz")[n]}
        cases[n] = replace(cases[n], image=torch.full((1, 4, 4), value), target=torch.ones(2, 4, 4).bool(), **facts)
    return Batch.of(cases)


class Thresholds(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x - 0.45, x - 0.75), 1)


MODEL = SegModel(Thresholds(), blobs.TASK).eval()


def test_a_patient_is_as_suspicious_as_the_worst_slice_and_its_dice_are_of_all_its_pixels() -> None:
    clean = {"row": 0, "kind": "clean", "attack": "clean", "loss": "", "goal": "", "eps": "", "noise": -1, "run": ""}
    attack = clean | {"row": 1, "kind": "attack", "attack": "fgsm"}
    slices = [
        ("q", "q_0", 1.0, (8, 8, 8), (8, 4, 2)),
        ("q", "q_1", 3.0, (2, 2, 0), (2, 6, 1)),
        ("p", "p_0", 2.0, (0, 0, 0), (0, 5, 0)),  # patients keep their order
    ]
    scores = pd.DataFrame(
        facts | {"group": group, "case": case, "score": score + facts["row"], "pixels_clean": [a, a], "pixels": [b, a]}
        for facts in (clean, attack)
        for group, case, score, a, b in slices
    )
    table = per_patient(scores, Calibrated(Brightest(), (1.0, 3.0, 3.5)))
    assert table[["row", "group", "case", "score"]].to_numpy().tolist() == [
        [0, "q", "q_1", 3.0],
        [0, "p", "p_0", 2.0],
        [1, "q", "q_1", 4.0],
        [1, "p", "p_0", 3.0],
    ]
    of_q = (2 * 3 / (10 + 10) + 2 * 8 / 20) / 2
    assert table["dice"].tolist() == pytest.approx([of_q, 0.5, of_q, 0.5])  # p: nothing to find, 0 and 1
    assert table["dice_clean"].tolist() == pytest.approx([0.8, 1.0, 0.8, 1.0])
    assert table["p"].tolist() == [3 / 4, 3 / 4, 1 / 4, 3 / 4]
    assert table["p_two_sided"].tolist() == [1.0, 1.0, 0.5, 1.0]


def test_pixels_are_of_truth_prediction_and_both_without_the_background() -> None:
    truth = torch.tensor([[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]).bool()
    pred = torch.tensor([[[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]]).bool()
    assert _pixels(DATA, pred, truth) == [[[2, 2, 1], [1, 1, 0]]]


def test_a_scan_has_the_score_of_its_worst_slice_and_its_pixels_are_added() -> None:
    batches = [bright(0.5, 0.8, 0.3, volumes="vuv"), bright(0.8, 0.1, volumes="vu")]
    with frozen(MODEL) as model:
        table = scan_scores(Calibrated(Brightest(), (4.0, 6.0, 9.0)), model, batches)
    assert table.to_dict("records") == [
        {"scan": "u", "score": 8.0, "case": "c1", "pixels_round": 16, "pixels_square": 16, "p": 0.5},
        {"scan": "v", "score": 8.0, "case": "c0", "pixels_round": 32, "pixels_square": 16, "p": 0.5},
    ]
    broken = bright(math.nan)
    with frozen(MODEL) as model, pytest.raises(InputError, match="expected a score of c0, got nan"):
        scan_scores(Calibrated(Brightest(), (4.0,)), model, [broken])


def test_of_two_slices_as_suspicious_the_first_is_named() -> None:
    with frozen(MODEL) as model:
        table = scan_scores(Calibrated(Brightest(), (4.0,)), model, [bright(0.5, 0.5, volumes="vv")])
    assert table["case"].tolist() == ["c0"]


def test_a_detector_is_calibrated_by_the_worst_slice_of_each_patient_across_batches() -> None:
    with frozen(MODEL) as model:
        fitted = fit(Brightest(), model, [bright(0.1)], [bright(0.5, 0.2, 0.7, groups="aab"), bright(0.9, groups="a")])
        assert fitted.calibration == (7.0, 9.0)
        assert fitted.level == pytest.approx(1 / 3)  # the least that two patients can promise


def test_a_trained_detector_learns_from_ten_steps_of_pgd_or_the_attack_that_it_names() -> None:
    assert _own_attack(Brightest()) is None
    trained = SimpleNamespace(learns_from="attacked")
    assert _own_attack(trained) == PGD(steps=10)  # type: ignore[arg-type]


STEP = registry.build("fgsm(linf(0.3))", "attack")


@dataclass(frozen=True)
class Trained(Brightest):
    """Learns the mean score of clean, noisy and attacked cases."""

    learns_from: ClassVar[str] = "attacked"
    attack: Any = STEP

    def learn(self, training: Training) -> dict[str, Tensor]:
        parts = {"clean": training.clean, "noisy": training.noisy, "attacked": training.attacked}
        assert len(training.cases) == 3
        return {name: torch.zeros(0) if part is None else part[:, 0] for name, part in parts.items()}


@dataclass(frozen=True)
class Mean(Trained):
    """As `Trained`, of the mean of a case, which says what noise it has."""

    def observe(self, model: Model, image: Tensor, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        return model(image), image.flatten(1).mean(1, keepdim=True)


def test_a_trained_detector_sees_training_cases_clean_with_noise_and_attacked() -> None:
    batches = [bright(0.5, 0.3), bright(0.6)]
    for batch in batches:
        batch.target[:, 1] = False  # all of one organ: an attack lowers every pixel for it
    with frozen(MODEL) as model:
        learned = fit(Trained(), model, batches, [bright(0.5, 0.2)], seed=2).detector.learned
        plain = fit(Trained(attack=None), model, batches, [bright(0.5, 0.2)], seed=2).detector.learned
    assert learned is not None
    assert plain is not None
    assert learned["clean"].tolist() == [5.0, 3.0, 6.0]
    assert learned["noisy"].tolist() == [8.0, 6.0, 9.0]  # the brightest pixel has all of the noise
    changes = learned["attacked"] - learned["clean"]
    assert (changes.abs() <= 3).all()
    assert (changes != 0).any()
    assert (plain["noisy"] != learned["noisy"]).all()  # in the ball of its own attack


def exposure(spec: str, label: str, **facts: Any) -> Exposure:
    return Exposure("attack", label, "0.01", registry.build(spec, "attack"), **facts)


def test_attacks_of_one_ball_and_budget_share_their_noise() -> None:
    one, other = exposure("fgsm(linf(0.01))", "fgsm"), exposure("pgd(linf(0.01), steps=3)", "pgd(steps=3)")
    assert control_key(one) == control_key(other) == "noise(ball=linf(eps=0.01)) "
    assert control_key(exposure("fgsm(linf(0.02))", "fgsm")) != control_key(one)
    assert control_key(replace(one, budget=parse_budget("5HU"))) == "noise(ball=linf(eps=0.01)) 5HU"
    assert control_key(Exposure("clean", "clean", "", None)) == ""


def test_one_step_becomes_pgd_where_it_is_to_know_a_detector_and_options_stand_behind_the_attack() -> None:
    step = _iterated(exposure("fgsm(linf(0.01), margin)", "fgsm within body"))
    assert (step.label, registry.spec(step.attack)) == (
        "pgd within body",
        registry.spec(PGD(step.attack.ball, step.attack.objective)),
    )  # type: ignore[union-attr]
    assert registry.spec(step.attack.objective) == "margin"  # type: ignore[union-attr]
    several = exposure("pgd(linf(0.01), steps=3)", "pgd(steps=3)")
    assert (_iterated(several).label, _iterated(several).attack) == (several.label, several.attack)
    plain = _evading(several, Evading())
    assert (plain.kind, plain.label, plain.evader) == ("adaptive", "evading(pgd(steps=3))", Evading())
    assert _evading(several, Evading(weight=2.0)).label == plain.label  # its command line says the weight
    assert _evading(several, Orthogonal(share=0.25)).label == "orthogonal(pgd(steps=3), share=0.25)"


def detection(dims: int = 2, **facts: Any) -> Detection:
    lengths = {"train": (3, 4), "val": (2, 5), "all": (3, 4, 2, 5), "alike": (3, 3)}

    def refs(split: str, fold: int, dims: int) -> tuple[CaseRef, ...]:
        first = 2 if split == "val" else 0
        scans = list(enumerate(lengths[split], first))
        if dims == 3:
            return tuple(CaseRef(f"v{v}", f"v{v}", f"p{v}", (n, 4, 4)) for v, n in scans)
        return tuple(CaseRef(f"v{v}_{i}", f"v{v}", f"p{v}", (4, 4), i) for v, n in scans for i in range(n))

    model = Mock(SegModel, dims=dims, black_box=False, task=blobs.TASK)
    parts = {"batch_size": 4, "data": Mock(Prepared, refs=refs)} | facts
    return Detection(
        Brightest(),
        (Path("run"),),
        model=model,
        model_label="m",
        model_ref=Mock(card={}),
        fold=0,
        device=torch.device("cpu"),
        **parts,
    )


def test_batches_are_whole_scans_where_they_fit_and_progress_counts_them() -> None:
    todo = detection()
    assert [len(batch) for batch in todo._batches(todo.refs("train"))] == [3, 4]
    assert [len(batch) for batch in todo._batches(todo.refs("val"))] == [4, 3]
    assert todo.patients == 2
    todo.__dict__["test_refs"] = todo.refs("train")
    todo.__dict__["exposures"] = (Exposure("clean", "clean", "", None),) * 3
    assert todo.steps == 2 + 2 + 3 * 2
    volumes = detection(dims=3)
    for split in ("val", "alike"):
        assert [len(batch) for batch in volumes._batches(volumes.refs(split))] == [1, 1]


@pytest.mark.parametrize(
    ("spec", "knows"),
    [("fgsm", True), ("square", True), ("noise", False), ("deformation", False), ("best_of((pgd, square))", True)],
)
def test_an_attack_that_climbs_in_place_can_know_a_detector(spec: str, knows: bool) -> None:
    todo = detection()
    assert todo._knows(exposure(spec, spec)) == knows
    assert not todo._knows(Exposure("clean", "clean", "", None))
    black_box = detection()
    black_box.model.black_box = True  # type: ignore[misc]
    assert not black_box._knows(exposure(spec, spec))


def test_where_nothing_is_said_batches_have_32_slices_and_draws_are_those_of_seed_0() -> None:
    def refs(split: str, fold: int, dims: int) -> tuple[CaseRef, ...]:
        return tuple(CaseRef(f"v{n}", f"v{n}", f"p{n}", (4, 4), 0) for n in range(31))

    model, data = Mock(SegModel, dims=2, black_box=False, task=blobs.TASK), Mock(Prepared, refs=refs)
    plain = Detection(Brightest(), (), data, model, "m", Mock(card={}), 0, torch.device("cpu"))
    assert (plain.batch_size, plain.seed) == (32, 0)
    assert [len(batch) for batch in plain._batches(refs("train", 0, 2))] == [31]
    with frozen(MODEL) as network:
        words = network, [bright(0.5, 0.3), bright(0.6)], [bright(0.5)]
        calls: list[dict[str, Any]] = [{}, {"seed": 0}, {"seed": 1}]
        plain, same, other = (fit(Mean(), *words, **call).detector.learned["noisy"] for call in calls)  # type: ignore[index]
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize(
    ("learned", "spec", "known", "hides"),
    [
        ("stamp(goal=erase('round'))", "trigger(stamp(goal=erase('round')))", True, True),
        ("stamp(goal=erase('round'))", "trigger(stamp(goal=erase('round')))", False, False),
        ("stamp(goal=erase('round'), opacity=0.5)", "trigger(stamp(goal=erase('round')))", True, False),
        ("", "trigger(stamp(goal=erase('round')))", True, False),
        ("stamp(goal=erase('round'))", "fgsm", True, False),
    ],
)
def test_a_trigger_is_hidden_where_the_model_learned_to_hide_it_from_the_detector(
    learned: str, spec: str, known: bool, hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brightest, "is_known_to", lambda detector, poison: known)
    todo = detection()
    todo.model_ref.card = {"dataset": {"poison": learned}} if learned else {}  # type: ignore[misc]
    assert todo._hides(registry.build(spec, "attack")) == hides
