"""A detector of a model: fitted on training, calibrated on validation patients, scored on runs and controls."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.attacks.blackbox.replay import Replay
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.watched import Evader
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.universal.trigger import Trigger
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.base import Calibrated, Detector
from medseg_attack.errors import InputError
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.detection.fitting import answer, fit
from medseg_attack.evaluation.fitting import Batches, fitted, must_fit
from medseg_attack.evaluation.loop import in_batches
from medseg_attack.evaluation.opening import open_run
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.abilities import Aimed, Climbs, ClimbsInSteps
from medseg_attack.registry.parts import walk
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.grid import control_of
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import read_config, read_header, read_stored_study
from medseg_attack.runs.stored_specs import attack_of, role_of, split_label, without_budget
from medseg_attack.runtime import deterministic
from medseg_attack.stats.alarms import require_rate, two_sided_p_values
from medseg_attack.storage.stages import begin_stage
from medseg_attack.threat.budgets import Budget, parse_budget
from medseg_attack.threat.poisons.base import Backdoor
from medseg_attack.types import Attack, Batch, Case, CaseRef, Donors, Fittable, Image, Mask, Task

Answer: TypeAlias = tuple[list[float], list[list[list[int]]]]  # a score of each case, and its pixels by class


@dataclass(frozen=True, eq=False)
class Exposure:
    """One row of a detector's table: the images that it is shown.

    Attributes:
        kind: "clean", "noise", "attack" (which knows nothing of the detector) or "adaptive". A trigger is of the latter
            kind where the model learned to hide it from the detector.
        label: the attack as tables show it.
        size: its budget as text.
        loss: what it climbs, as tables show it.
        run: folder of the run that the images are from, or are made again from; None of controls.
        evader: what makes it know the detector; None of an attack that does not, and of a trigger.
    """

    kind: str
    label: str
    size: str
    attack: Attack | None
    budget: Budget | None = None
    loss: str = ""
    run: Path | None = None
    evader: Evader | None = None

    @property
    def goal(self) -> str:
        """The mask that the attack wants; "" where any but the truth will do."""
        goals = (part.goal for part in walk(self.attack) if isinstance(part, Aimed))
        return ", ".join(dict.fromkeys(registry.spec(goal) for goal in goals if goal is not None))


@dataclass(frozen=True, eq=False)
class Detection:
    """A detector that is to be fitted, calibrated and scored on finished runs of one model.

    Attributes:
        runs: folders of finished runs of attacks.
        evaders: what the attacks that know the detector are made with; () runs none.
        answers: scores and pixels of batches under clean images and noise, by what they depend on: detections of
            several runs that share it compute these once for each fitted detector.
    """

    detector: Detector
    runs: tuple[Path, ...]
    data: Prepared
    model: SegModel
    model_label: str
    model_ref: ModelRef
    fold: int
    device: torch.device
    batch_size: int = 32
    seed: int = 0
    evaders: tuple[Evader, ...] = (Evading(),)
    answers: dict[Hashable, Answer] = field(default_factory=dict)

    @classmethod
    def open(cls, detector: Detector, paths: Sequence[Path], device: torch.device, **options: Any) -> "Detection":
        """Opens the runs at or below some paths, with their data and their model.

        Raises:
            InputError: there is no finished attack, the runs are of several models or data sets, or they attacked
                patients whom the detector is fitted or calibrated on.
        """
        runs = tuple(run for run in dict.fromkeys(find_runs(paths)) if role_of(read_header(run)) == "attack")
        if not runs:
            raise InputError(f"expected runs of attacks in {paths[0]}, got none; run medattack attack first")
        configs = [read_config(run) for run in runs]
        for key in ("weights", "data"):
            if len({config[key] for config in configs}) > 1:
                what = "model" if key == "weights" else "data set"
                raise InputError(f"expected runs of one {what} for a detector, got several; give those of one alone")
        data, model, model_ref = open_run(runs[0], device)
        study = read_stored_study(runs[0].parent.parent)
        header = read_header(runs[0])
        todo = cls(
            detector, runs, data, model, str(header["model"]), model_ref, int(study.get("fold", 0)), device, **options
        )
        todo.require()
        return todo

    @property
    def facts(self) -> dict[str, Any]:
        """The model, the data and how scans are prepared, as a detector's file holds them."""
        return {
            "model": self.model_label,
            "weights": self.model_ref.weights_hash,
            "data": self.data.fingerprint,
            "task": self.data.task.to_json(),
            "dims": self.model.dims,
            "options": {name: self.data.options.get(name) for name in ("window", "size", "plane")},
        }

    def refs(self, split: Any) -> tuple[CaseRef, ...]:
        """The cases of a split, as the model takes them."""
        return self.data.refs(split, self.fold, self.model.dims)

    @cached_property
    def test_refs(self) -> tuple[CaseRef, ...]:
        """The cases of those patients whom every run attacked as a whole.

        A patient's score is that of the most suspicious slice: it is no fair one of a part of the slices.
        """
        known = [set(RunFolder(run).rows()["case"]) for run in self.runs]
        common = set.intersection(*known)
        partial = {ref.group for ref in self.refs("all") if ref.id not in common}
        return tuple(ref for ref in self.refs("all") if ref.group not in partial)

    def require(self) -> None:
        """Refuses runs that attacked patients whom the detector learns from, and attacks that cannot know it."""
        learned = {ref.group for split in ("train", "val") for ref in self.refs(split)}
        attacked = {group for run in self.runs for group in RunFolder(run).rows()["group"]}
        if shared := sorted(learned & attacked):
            raise InputError(
                "expected a detector to be scored on other patients than it is fitted and calibrated on, got "
                f"{shared[0]} among both; run the attacks on --split test"
            )
        if not self.test_refs:
            raise InputError(
                f"expected runs of all slices of a patient in {self.runs[0]}, got parts of each, whose most suspicious "
                "slice says less; run the attacks without --limit"
            )
        for each in self.exposures:
            if each.evader is not None and each.attack is not None:
                replace(each.evader, attack=each.attack)  # refuses what cannot be run, before anything is

    @cached_property
    def patients(self) -> int:
        """The number of calibration patients."""
        return len({ref.group for ref in self.refs("val")})

    @cached_property
    def is_partial(self) -> bool:
        """Whether a run is of part of the cases (`--limit`)."""
        return any(read_header(run).get("partial") for run in self.runs)

    def require_rate(self, rate: float) -> None:
        """Refuses a rate of false alarms that the calibration patients cannot promise."""
        require_rate(rate, self.patients, str(self.data.root))

    @cached_property
    def exposures(self) -> tuple[Exposure, ...]:
        """The rows of the table: clean images, controls, attacks, and those that know the detector.

        Those that climb the detector are still without it; see `score`.
        """
        attacks = sorted(map(self._exposure, self.runs), key=lambda each: each.kind == "adaptive")
        noise: dict[str, Exposure] = {}
        for each in attacks:
            control, is_own = control_of(each.attack)
            label = f"noise {split_label(each.label)[0]}" if is_own else "noise"
            noise.setdefault(control_key(each), Exposure("noise", label, each.size, control, each.budget))
        adaptive = {
            (registry.spec(each.attack), str(each.budget), registry.spec(evader)): _evading(each, evader)
            for evader in self.evaders
            for each in map(_iterated, attacks)
            if self._knows(each)
        }
        return (Exposure("clean", "clean", "", None), *noise.values(), *attacks, *adaptive.values())

    def _knows(self, exposure: Exposure) -> bool:
        """Whether the attack can be made to know the detector: it climbs an objective of the model, in place."""
        attack = exposure.attack
        return bool(
            attack is not None
            and not self.model.black_box
            and not attack.ball.moves_anatomy
            and any(isinstance(part, Climbs) and isinstance(part, Attack) for part in walk(attack))
        )

    def _exposure(self, run: Path) -> Exposure:
        config, header = read_config(run), read_header(run)
        attack = registry.build(attack_of(config), "attack")
        budget = parse_budget(config["budget"]) if config.get("budget") else None
        size = config["budget"] if budget else registry.spec(attack.ball.eps)
        kind, label = "attack", without_budget(str(header["attack"]), str(header.get("ball") or ""))
        if self._hides(attack):
            kind, label = "adaptive", f"{label}, trained to go unnoticed"
        return Exposure(kind, label, str(size), attack, budget, str(header.get("loss", "")), run)

    def _hides(self, attack: Attack) -> bool:
        """Whether the attack puts on the trigger that the model learned, and learned to hide from the detector."""
        learned = self.model_ref.card.get("dataset", {}).get("poison")
        if not (learned and isinstance(attack, Trigger)):
            return False
        poison = registry.build(learned, "poison")
        is_learned = isinstance(poison, Backdoor) and poison.has_trigger_of(attack.poison)
        return is_learned and self.detector.is_known_to(poison)

    @property
    def steps(self) -> int:
        """Batches of cases that are looked at, which progress is counted in."""
        n = sum(len(self._batches(self.refs(split))) for split in ("train", "val"))
        return n + len(self.exposures) * len(self._batches(self.test_refs))

    def fit(self, advance: Callable[[int], None] = lambda n: None) -> Calibrated:
        """The detector, fitted on training patients and calibrated on validation patients."""
        refs = self.refs("train")
        if not self.patients:
            raise InputError(
                f"expected validation patients in {self.data.root} to calibrate on, got none; prepare more"
            )
        begin_stage("fitting on training patients")
        with frozen(self.model), deterministic(self.device):
            training, calibration = (self._read(part, advance) for part in (refs, self.refs("val")))
            return fit(self.detector, self.model, training, calibration, self.seed)

    def score(self, fitted_detector: Calibrated, advance: Callable[[int], None] = lambda n: None) -> pd.DataFrame:
        """The scores of every case under every exposure: a row each, with its pixel counts by class.

        Columns: row, kind, attack, loss, goal, eps, noise (row of the noise of the same size), run, case, volume,
        group, score, and for Dice `pixels_clean` and `pixels`, (classes, 3) each.
        """
        exposures = self.exposures
        noise = {control_key(each): row for row, each in enumerate(exposures) if each.kind == "noise"}
        records: list[dict[str, Any]] = []
        begin_stage("preparing the attacks")
        with frozen(self.model), deterministic(self.device):
            attacks = [self._attack(each, fitted_detector) for each in exposures]
            donors = Donors(self.data, self.test_refs)
            for batch in self._read(self.test_refs, lambda n: None):
                _, clean = self._answer(exposures[0], None, fitted_detector, batch, donors)
                for row, (exposure, attack) in enumerate(zip(exposures, attacks, strict=True)):
                    begin_stage(f"scoring {exposure.label}")
                    scores, pixels = self._answer(exposure, attack, fitted_detector, batch, donors)
                    facts = {
                        "row": row,
                        "kind": exposure.kind,
                        "attack": exposure.label,
                        "loss": exposure.loss,
                        "goal": exposure.goal,
                        "eps": exposure.size,
                        "noise": noise.get(control_key(exposure), -1),
                        "run": str(exposure.run or ""),
                    }
                    for n, case in enumerate(batch.cases):
                        of_case = {"case": case.id, "volume": case.volume, "group": case.group, "score": scores[n]}
                        records.append(facts | of_case | {"pixels_clean": clean[n], "pixels": pixels[n]})
                    advance(1)
        return pd.DataFrame(records)

    def _attack(self, exposure: Exposure, detector: Calibrated) -> Attack | None:
        """The attack of an exposure: stored images are replayed, others made again, with what was learned then."""
        attack, run = exposure.attack, exposure.run
        if attack is None or run is None:
            return attack
        if exposure.evader is None and (run / "images").is_dir():
            return Replay(str(run))
        if must_fit(attack):
            batches = Batches.of(self.data, self.refs("train"), self.device)
            attack = fitted(attack, self.model, batches, RunFolder(run), self.seed)
        if exposure.evader is None:
            return attack
        evader: Attack = replace(exposure.evader, attack=attack, detector=detector)
        if isinstance(evader, Fittable):
            batches = Batches.of(self.data, self.refs("train"), self.device)
            evader = evader.with_learned(evader.fit(self.model, batches, self.seed))
        return evader

    def _answer(
        self, exposure: Exposure, attack: Attack | None, detector: Calibrated, batch: Batch, donors: Donors
    ) -> Answer:
        """The score of each case of a batch under an exposure, and the pixels of its mask.

        Clean images and noise are the same for every attack: their answers are kept.
        """
        cases = tuple(case.id for case in batch.cases)
        key = (detector, exposure.kind, control_key(exposure), self.seed, cases)
        known = self.answers.get(key)
        if known is not None and exposure.run is None:
            return known
        image, truth = self._changed(batch, attack, exposure.budget, donors)
        scores, pred = answer(detector.detector, self.model, image, batch)
        result = scores, _pixels(self.model.task, pred, truth)
        if exposure.run is None:
            self.answers[key] = result
        return result

    def _changed(
        self, batch: Batch, attack: Attack | None, budget: Budget | None, donors: Donors
    ) -> tuple[Image, Mask]:
        """The images under an attack, and the truth on them, which goes where the anatomy went."""
        if attack is None:
            return batch.image, batch.target
        image, truth = batch.image.clone(), batch.target.clone()
        is_replay = isinstance(attack, Replay)
        for crafted in craft(self.model, batch, [attack], [None if is_replay else budget], self.seed, donors):
            image[crafted.positions] = crafted.image
            truth[crafted.positions] = crafted.truth
        return image, truth

    def _batches(self, refs: Sequence[CaseRef]) -> list[tuple[CaseRef, ...]]:
        """Cases in batches of whole scans, as far as these fit; a 3-D scan is one by itself."""
        size = 1 if self.model.dims == 3 else self.batch_size
        return [batch for chunk in chunks(refs) for batch in map(tuple, in_batches(chunk, size))]

    def _read(self, refs: Sequence[CaseRef], advance: Callable[[int], None]) -> Iterator[Batch]:
        for batch in self._batches(refs):
            cases: list[Case] = [self.data.read(ref) for ref in batch]
            yield Batch.of(cases, self.device)
            advance(1)


def per_patient(scores: pd.DataFrame, detector: Calibrated) -> pd.DataFrame:
    """A row per patient of the rows of `Detection.score`: score, p of one and two sides, Dice clean and attacked."""
    keys = ["row", "kind", "attack", "loss", "goal", "eps", "noise", "run", "group"]
    table = []
    for key, cases in scores.groupby(keys, sort=False):
        clean, dice = (
            float(dice_of(torch.tensor(cases[column].tolist()).sum(0), empty=1.0).mean())
            for column in ("pixels_clean", "pixels")
        )
        worst = cases.iloc[int(cases["score"].to_numpy().argmax())]
        table.append(
            dict(zip(keys, key, strict=True))
            | {"score": worst["score"], "case": worst["case"], "dice_clean": clean, "dice": dice}
        )
    result = pd.DataFrame(table)
    values = np.array(result["score"].tolist())
    p, both = detector.p_values(values.tolist()), two_sided_p_values(values, detector.scores)
    return result.assign(p=p, p_two_sided=both)


def _pixels(task: Task, pred: Mask, target: Mask) -> list[list[list[int]]]:
    """Pixels of truth, prediction and both, by case and reported class."""
    classes = list(task.scored)
    pixels: list[list[list[int]]] = counts(pred[:, classes], target[:, classes]).tolist()
    return pixels


def control_key(exposure: Exposure) -> str:
    """The text of an attack's control and its budget, by which attacks share a control; "" for clean images."""
    if exposure.attack is None:
        return ""
    return f"{registry.spec(control_of(exposure.attack)[0])} {exposure.budget or ''}"


def _iterated(exposure: Exposure) -> Exposure:
    """The exposure of the attack that knows the detector: one step cannot go around an alarm, so that PGD does."""
    attack: Any = exposure.attack
    label = exposure.label
    if isinstance(attack, ClimbsInSteps) and attack.steps == 1:
        _, rest = split_label(label)
        attack, label = PGD(attack.ball, attack.objective), f"pgd{rest}"
    return replace(exposure, label=label, attack=attack)


def _evading(exposure: Exposure, evader: Evader) -> Exposure:
    """The exposure of the attack that knows the detector, by name: options stand behind the attack."""
    name, _, options = registry.spec(evader.labelled()).rstrip(")").partition("(")
    inner = f"{exposure.label}, {options}" if options else exposure.label
    return replace(exposure, kind="adaptive", label=f"{name}({inner})", evader=evader)
