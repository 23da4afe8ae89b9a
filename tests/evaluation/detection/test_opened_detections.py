"""Detections of finished runs, and scans that are screened, on a model that is a threshold: every score by hand."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.older_runs import make_older
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.blackbox.replay import Replay
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.orthogonal import Orthogonal
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.detectors.base import Calibrated, Detector
from medseg_attack.errors import InputError
from medseg_attack.evaluation.detection.evaders import evaders
from medseg_attack.evaluation.detection.scoring import Detection, per_patient
from medseg_attack.evaluation.detection.screening import screen
from medseg_attack.evaluation.opening import open_study
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.evaluation.studies.running import run
from medseg_attack.models.model_ref import ModelRef, resolve
from medseg_attack.models.trust import use_trust
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.study import read_study
from medseg_attack.types import Case, Model, Task

CPU = torch.device("cpu")
SLICES = 3


@dataclass(frozen=True)
class Mean(Detector):
    """The mean of a case's pixels."""

    reason: ClassVar[str] = "bright"

    def observe(self, model: Model, image: Tensor, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        return model(image), image.flatten(1).mean(1, keepdim=True)

    def score(self, statistics: Tensor, cases: Sequence[Case]) -> Tensor:
        return statistics[:, 0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine patients, and finished runs of five attacks on the three for testing, and on part of them."""
    home = tmp_path_factory.mktemp("detected")
    write_bright(home / "scans", patients=9, slices=SLICES)
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "0.34", "--folds", "2")
    use_trust(home, True)

    def study(name: str, net: str = "Net", save: str = "none", **settings: Any) -> None:
        flags = {"models": [f"own('{home}/scans/nets.py:{net}')"], "attacks": ["fgsm"], "eps": ["0.25"]} | settings
        list(run(open_study(read_study(None, flags), home, CPU, RunOptions(save=save), home / name)))

    study("plain", attacks=["fgsm", "pgd(steps=2)"])
    study("stored", save="all", eps=["15raw"], control=False)
    study("other", net="Sigmoid")
    study("part", limit=4)
    study("training", split="all")
    study("learning", attacks=["uap(epochs=1)"])
    study("moving", attacks=["deformation(steps=1)"], eps=["2"])
    return home


@pytest.fixture
def todo(home: Path) -> Detection:
    return Detection.open(Mean(), [home / "plain", home / "stored"], CPU, batch_size=4, evaders=())


def calibrated(*scores: float) -> Calibrated:
    return Calibrated(Mean(), scores or (0.1, 0.2, 0.3))


def test_runs_of_attacks_are_opened_with_their_model_and_data(todo: Detection, home: Path) -> None:
    assert [each.parent.parent.name for each in todo.runs] == ["plain", "plain", "stored"]
    assert all("noise" not in each.name for each in todo.runs)
    assert (todo.fold, todo.batch_size, todo.seed) == (0, 4, 0)
    assert todo.model_label.endswith("nets.py:Net')")
    assert todo.facts == {
        "model": todo.model_label,
        "weights": todo.model_ref.weights_hash,
        "data": todo.data.fingerprint,
        "task": todo.data.task.to_json(),
        "dims": 2,
        "options": {name: todo.data.options.get(name) for name in ("window", "size", "plane")},
    }
    test = todo.data.refs("test")
    assert sorted(ref.id for ref in todo.test_refs) == sorted(ref.id for ref in test)
    assert len(test) == 9
    assert todo.patients == 3
    assert not todo.is_partial
    with pytest.raises(InputError, match="patients"):
        todo.require_rate(0.01)
    todo.require_rate(0.25)
    n = sum(len(todo._batches(todo.refs(split))) for split in ("train", "val"))
    assert todo.steps == n + len(todo.exposures) * 3


def test_older_runs_are_of_attacks_where_their_names_say_so_and_of_fold_0(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "plain", tmp_path / "plain")
    for header in list(folder.rglob("run.json")):
        make_older(header.parent)
    older, todo = (Detection.open(Mean(), [runs], CPU, evaders=()) for runs in (folder, home / "plain"))
    assert [run.relative_to(folder) for run in older.runs] == [run.relative_to(home / "plain") for run in todo.runs]
    assert older.fold == 0
    assert not older.is_partial
    assert [(each.kind, each.label) for each in older.exposures] == [(each.kind, each.label) for each in todo.exposures]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["plain", "other"], "expected runs of one model for a detector"),
        (["training"], "among both; run the attacks on --split test"),
        ([], "expected runs of attacks in"),
    ],
)
def test_runs_that_say_nothing_of_one_detector_are_refused(
    home: Path, names: list[str], sentence: str, tmp_path: Path
) -> None:
    if not names:
        names = ["noise"]
        flags = {"models": [f"own('{home}/scans/nets.py:Net')"], "attacks": ["noise"], "eps": ["0.1"]}
        list(run(open_study(read_study(None, flags), home, CPU, RunOptions(), home / "noise")))
    with pytest.raises(InputError, match=sentence):
        Detection.open(Mean(), [home / name for name in names], CPU)


def test_an_attack_that_cannot_know_a_detector_is_refused_at_once(home: Path) -> None:
    knowing = registry.build("hfc", "attack")
    with pytest.raises(InputError, match="expected an attack that needs no fit for hfc"):
        Detection.open(Mean(), [home / "learning"], CPU, evaders=(knowing,))


def test_patients_of_whom_a_run_has_a_part_are_left_out(home: Path) -> None:
    part = [file for file in (home / "part").rglob("run.json") if "noise" not in file.parent.name]
    known = {case for file in part for case in RunFolder(file.parent).rows()["case"]}
    both = Detection.open(Mean(), [home / "plain"], CPU)
    mixed = replace(both, runs=(*both.runs, part[0].parent))
    left_out = {ref.group for ref in both.refs("test") if ref.id not in known}
    whole = {ref.group for ref in both.refs("test")} - left_out
    assert {ref.group for ref in mixed.test_refs} == whole
    assert len(mixed.test_refs) < len(both.test_refs)
    assert mixed.is_partial


def test_exposures_are_clean_images_noise_of_each_ball_attacks_and_those_that_know(home: Path) -> None:
    todo = Detection.open(Mean(), [home / "plain", home / "stored", home / "moving"], CPU, evaders=(Evading(),))
    rows = [(each.kind, each.label, each.size, each.loss) for each in todo.exposures]
    assert rows == [
        ("clean", "clean", "", ""),
        ("noise", "noise", "0.25", ""),
        ("noise", "noise", "15raw", ""),
        ("noise", "noise deformation(steps=1)", "2.0", ""),
        ("attack", "fgsm", "0.25", "bce"),
        ("attack", "pgd(steps=2)", "0.25", "bce"),
        ("attack", "fgsm", "15raw", "bce"),
        ("attack", "deformation(steps=1)", "2.0", rows[7][3]),
        ("adaptive", "evading(pgd)", "0.25", "bce"),
        ("adaptive", "evading(pgd(steps=2))", "0.25", "bce"),
        ("adaptive", "evading(pgd)", "15raw", "bce"),
    ]
    assert [each.run for each in todo.exposures[:4]] == [None] * 4
    assert [each.run for each in todo.exposures[4:8]] == list(todo.runs)
    assert {each.goal for each in todo.exposures} == {""}


def test_scores_of_every_case_under_every_exposure(todo: Detection) -> None:
    """A step of FGSM goes down where there is an organ and up elsewhere; noise goes either way in each pixel."""
    advanced: list[int] = []
    table = todo.score(calibrated(), advanced.append)
    n_rows = len(todo.exposures)
    assert n_rows == 1 + 2 + 3
    assert advanced == [1] * (3 * n_rows)
    assert len(table) == n_rows * 9
    assert table["noise"].groupby(table["row"]).first().tolist() == [-1, 1, 2, 1, 1, 2]
    assert table["run"].groupby(table["row"]).first().tolist() == ["", "", "", *map(str, todo.runs)]
    for ref in todo.test_refs:
        case = todo.data.read(ref)
        of_case = table[table["case"] == ref.id].set_index("row")
        organ, image = case.target[1], case.image[0].double()
        assert (of_case["volume"] == ref.volume).all()
        assert (of_case["group"] == ref.group).all()
        clean = image > 0.4
        pixels = [[int(organ.sum()), int(clean.sum()), int((clean & organ).sum())]]
        assert all(each == pixels for each in of_case["pixels_clean"])
        assert of_case.loc[0, "pixels"] == pixels
        assert of_case.loc[0, "score"] == pytest.approx(float(image.mean()))
        width = case.window.high - case.window.low  # type: ignore[operator]
        for row, values in ((3, int(0.25 * width)), (5, 15)):
            moved = torch.where(organ, image - values / width, image + values / width).clamp(0, 1)
            assert of_case.loc[row, "score"] == pytest.approx(float(moved.mean()), abs=8e-3)
            adv = moved > 0.4
            assert of_case.loc[row, "pixels"] == [[int(organ.sum()), int(adv.sum()), int((adv & organ).sum())]]
        assert len(set(of_case.loc[:2, "score"])) == 3  # clean images, and noise of two sizes
    again = todo.score(calibrated())
    pd.testing.assert_frame_equal(table, again)


def test_answers_without_an_attack_are_kept_for_other_runs_of_one_detector(
    todo: Detection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = calibrated()
    todo.score(shown)
    assert len(todo.answers) == 3 * 3  # batches by clean images and two kinds of noise
    asked: list[str] = []
    real = Mean.observe
    monkeypatch.setattr(Mean, "observe", lambda self, *words: (asked.append("asked"), real(self, *words))[1])
    todo.score(shown)
    assert len(asked) == 3 * 3  # batches by attacks
    replace(todo, seed=1).score(shown)
    assert len(asked) == 3 * 3 + 6 * 3


def test_stored_images_are_replayed_and_others_made_again(todo: Detection) -> None:
    stored = next(each for each in todo.exposures if each.run == todo.runs[2])
    plain = next(each for each in todo.exposures if each.run == todo.runs[0])
    assert todo._attack(stored, calibrated()) == Replay(str(todo.runs[2]))
    assert todo._attack(plain, calibrated()) == plain.attack
    knowing = todo._attack(replace(plain, evader=Evading()), calibrated())
    assert isinstance(knowing, Evading)
    assert knowing.attack == plain.attack
    assert knowing.detector.calibration == (0.1, 0.2, 0.3)  # type: ignore[union-attr]
    assert isinstance(todo._attack(replace(stored, evader=Evading()), calibrated()), Evading)
    assert todo._attack(todo.exposures[0], calibrated()) is None
    assert todo._attack(todo.exposures[1], calibrated()) == todo.exposures[1].attack


def test_a_detector_is_calibrated_on_the_most_suspicious_slice_of_each_validation_patient(todo: Detection) -> None:
    advanced: list[int] = []
    fitted = todo.fit(advanced.append)
    means: dict[str, float] = {}
    for ref in todo.refs("val"):
        means[ref.group] = max(means.get(ref.group, 0.0), float(todo.data.read(ref).image.mean()))
    assert fitted.calibration == pytest.approx(sorted(means.values()))
    assert len(means) == 3
    assert sum(advanced) == len(todo._batches(todo.refs("train"))) + len(todo._batches(todo.refs("val")))
    with pytest.raises(InputError, match="expected validation patients"):
        replace(todo, data=replace(todo.data, splits=dict.fromkeys(todo.data.splits, 1))).fit()


def test_images_that_the_truth_goes_with_are_scored_by_it(home: Path) -> None:
    todo = Detection.open(Mean(), [home / "moving"], CPU, evaders=())
    table = todo.score(calibrated())
    rows = RunFolder(todo.runs[0]).rows()
    of_attack = table[table["kind"] == "attack"].set_index("case")
    for row in rows.itertuples():
        assert of_attack.loc[row.case, "pixels"] == [[row.n_target_adv, row.n_adv, row.hit_adv]]
    assert per_patient(table, calibrated())["group"].nunique() == 3


def test_an_attack_that_learned_something_uses_it_again(home: Path) -> None:
    todo = Detection.open(Mean(), [home / "learning"], CPU, evaders=())
    table = todo.score(calibrated())
    of_attack = table[table["kind"] == "attack"].set_index("case")
    for row in RunFolder(todo.runs[0]).rows().itertuples():
        assert of_attack.loc[row.case, "pixels"] == [[row.n_target_adv, row.n_adv, row.hit_adv]]
    assert (of_attack["score"] != table[table["kind"] == "clean"].set_index("case")["score"]).all()


# ways to know a detector


def test_weights_are_for_the_ways_that_have_one_and_set_none() -> None:
    plain, own, other = evaders(["evading", "evading(weight=3)", "orthogonal"], (1.0, 2.0))
    assert isinstance(plain, Evading)
    assert plain.weight == (1.0, 2.0)
    assert own == registry.build("evading(weight=3)", "attack")
    assert other == Orthogonal()
    assert evaders(["evading", "orthogonal"]) == (Evading(), Orthogonal())
    for texts in (["orthogonal"], ["evading(weight=3)"]):
        with pytest.raises(InputError, match="expected --weight beside a way of --knowing"):
            evaders(texts, (1.0,))
    with pytest.raises(InputError, match=r"one of .*evading.*, got pgd"):
        evaders(["pgd"])


# new scans


@dataclass(frozen=True)
class Saved:
    calibrated: Calibrated
    facts: dict[str, Any]


def test_a_whole_scan_is_screened_by_itself(todo: Detection, home: Path) -> None:
    saved: Any = Saved(calibrated(0.2, 0.3), todo.facts)
    seen: list[int] = []
    volumes = resolve(f"own('{home}/scans/nets.py:Net', dims=3)", todo.data.task)
    table, _ = screen(todo.data.root, saved, volumes, CPU, advance=seen.append)
    assert seen == [1] * 9
    assert len(table) == 9


def test_scans_are_screened_as_the_detector_saw_others(todo: Detection, home: Path) -> None:
    saved: Any = Saved(calibrated(0.2, 0.3), todo.facts)
    seen: list[int] = []
    data = open_prepared(todo.data.root)
    table, _ = screen(data.root, saved, todo.model_ref, CPU, batch_size=4, advance=seen.append)
    assert sum(seen) == 27
    assert max(seen) <= 4
    means: dict[str, float] = {}
    for ref in data.refs("all"):
        means[ref.volume] = max(means.get(ref.volume, 0.0), float(data.read(ref).image.mean()))
    assert table["scan"].tolist() == sorted(means)
    assert table["score"].tolist() == pytest.approx([means[scan] for scan in sorted(means)])
    fresh, _ = screen(home / "scans" / "imagesTr", saved, todo.model_ref, CPU)
    assert fresh["score"].tolist() == pytest.approx(table["score"].tolist())
    assert fresh["p"].tolist() == table["p"].tolist()
    task = Task("decathlon", ("background", "liver"), exclusive=True)
    prompted = Mock(ModelRef)
    prompted.load.return_value = Mock(dims=2, prompt="a box")
    for scans, facts, model_ref, sentence in (
        (
            data.root,
            {"task": task.to_json()},
            todo.model_ref,
            "of the classes background, liver, got background, organ",
        ),
        (data.root, {"options": saved.facts["options"] | {"size": [8, 8]}}, todo.model_ref, "prepared as those that"),
        (home / "scans" / "imagesTr", {}, prompted, "expected a prepared data set for a model with prompts"),
    ):
        other: Any = Saved(saved.calibrated, saved.facts | facts)
        with pytest.raises(InputError, match=sentence):
            screen(scans, other, model_ref, CPU)
