"""Trials of defences: the runs that say what a defence is worth, beside those of its undefended twin."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.checks import stored
from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import must_fit
from medseg_attack.evaluation.knowledge import is_ignorant, needed
from medseg_attack.evaluation.opening import find_model, open_study
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.evaluation.studies.running import run
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry.abilities import ClimbsInSteps
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import safe
from medseg_attack.runs.stored_files import TRIAL_FILE
from medseg_attack.runs.study import Study
from medseg_attack.runs.workspace import with_newest_data
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.json_files import digest, write_json
from medseg_attack.threat.objectives.losses import margin, soft_dice
from medseg_attack.types import Ball

PARTS = ("native", "adaptive", "harder", "transfer", "queries")  # folders of a trial, see `Trial`
LEAST_STEPS = 40  # of a suite; the attacks that are added to it have twice as many
UNKNOWN = {"MA002", "MA003"}  # no gradient, random: nobody said so, and no attack of the trial knows it
BLOCKED = {"MA001", "MA020", "MA021"}  # as these are, of a model that declares no defence


@dataclass(frozen=True)
class Trial:
    """A group of defended models with one undefended twin.

    Attributes:
        twin: label of the twin.
        defended: labels of the defended models.
        parts: studies by what their attacks know: "native"; "adaptive", the same by an attacker who knows, of models
            that have something to know; "harder", with attacks that are added; "transfer" (from the twin); "queries".
    """

    twin: str
    defended: tuple[str, ...]
    parts: Mapping[str, OpenedStudy]

    @property
    def total(self) -> int:
        """Number of (case, attack) pairs of this shard."""
        return sum(study.total for study in self.parts.values())

    @property
    def folder(self) -> Path:
        """The folder of all its parts."""
        return self.parts["native"].out.parent

    def store(self) -> None:
        """Writes what the runs do not say, for those who read them again; all runs must be finished."""
        facts = {
            "twin": self.twin,
            "non_adaptive": self.non_adaptive,
            "passes": {model.label: int(model.card.get("passes", 1)) for model in self.parts["native"].models},
        }
        write_json(self.parts["native"].out / TRIAL_FILE, facts)

    @property
    def run_folders(self) -> dict[str, list[Path]]:
        """The folders of all runs, by part."""
        return {name: study.run_folders for name, study in self.parts.items()}

    def run(self) -> Iterator[int]:
        """Runs what is missing, and yields how many (case, attack) pairs are done since the last time.

        Raises:
            InputError: the folder has a part that the trial lacks, as trials of former versions do, or a part of
                another trial.
        """
        if others := [name for name in PARTS if name not in self.parts and (self.folder / name).is_dir()]:
            raise InputError(
                f"expected {self.folder} to be new or to hold this trial, got one with the part {others[0]}; choose "
                "another --out"
            )
        for study in self.parts.values():
            for n_done in run(study):
                for each in self.parts.values():  # the folders of all parts say that it is a trial if it is killed
                    each.out.mkdir(exist_ok=True)
                yield n_done

    @property
    def non_adaptive(self) -> dict[str, str]:
        """The defended models that no attack of the trial knows, with the codes of the flags that say so."""
        result = {}
        for model in self.parts["native"].models:
            if model.black_box:
                result[model.label] = "no gradient"
                continue
            studies = (self.parts[part] for part in ("harder", "adaptive", "native") if part in self.parts)
            study = next(study for study in studies if model in study.models)
            codes = {finding.code for finding in stored.read_before(study.folder(model))}
            declares = bool(needed(model) or model.base)
            unknown = codes & ((UNKNOWN - {"MA003"} if model.is_random else UNKNOWN) | (set() if declares else BLOCKED))
            if unknown:
                result[model.label] = ", ".join(sorted(unknown))
        return {label: text for label, text in result.items() if label != self.twin}


def group_by_twin(models: Sequence[str], twin: str | None, workspace: Path) -> dict[str, list[str]]:
    """The defended models of each undefended twin, as folders or specs.

    Args:
        models: names, folders or specs of the defended models.
        twin: that of the undefended twin; None: the model within each of them.

    Raises:
        InputError: a model has no twin or is its own, or is not found.
    """
    by_twin: dict[str, list[str]] = {}
    for name in dict.fromkeys(find_model(workspace, model) for model in models):
        base = find_model(workspace, twin) if twin else ModelRef(name, {}).base
        if not base or base == name:
            raise InputError(
                f"expected an undefended twin of {name}, got {base or 'none'}; give --twin NAME, a model that was "
                "trained alike without the defence"
            )
        by_twin.setdefault(base, []).append(name)
    return by_twin


def open_trials(
    by_twin: Mapping[str, Sequence[str]],
    study: Study,
    workspace: Path,
    device: torch.device,
    options: RunOptions,
    out: Path | None = None,
    queries: int | None = None,
) -> list[Trial]:
    """The trials of defended models, one for each twin.

    Args:
        by_twin: of `group_by_twin`.
        study: its attacks are the suite; its steps, if any, are those of the attacks that are added to try harder.
        out: folder of the results; one in the workspace by default.
        queries: of the search without gradients; None: as many as it has by itself.

    Raises:
        InputError: a model cannot be opened.
    """
    study = with_newest_data(workspace, study)
    natives = [open_study(_native(base, names, study), workspace, device, options) for base, names in by_twin.items()]
    groups = [
        {"native": native}
        | {part: open_study(each, workspace, device, options, resolved=native.models) for part, each in others.items()}
        for native, others in ((native, _others(native, study, queries)) for native in natives)
    ]
    identity = [{part: each.identity for part, each in group.items()} for group in groups]
    root = out or workspace / "runs" / f"defend-{safe(natives[0].data.name)}-{digest(identity)[:8]}"
    return [_trial(group, root / f"twin-{n}" if len(groups) > 1 else root) for n, group in enumerate(groups)]


def _trial(parts: Mapping[str, OpenedStudy], root: Path) -> Trial:
    twin, *defended = (model.label for model in parts["native"].models)
    return Trial(twin, tuple(defended), {name: replace(study, out=root / name) for name, study in parts.items()})


def _native(twin: str, models: Sequence[str], study: Study) -> Study:
    """The suite on all models, as if nobody knew a defence, and noise."""
    more = {"models": [twin, *models], "native": True, "control": True, "steps": None}
    return study.model_copy(update=more)


def _others(native: OpenedStudy, study: Study, queries: int | None) -> dict[str, Study]:
    """The other studies of a trial, by part; none is without attacks or models.

    The suite is run again where its attacks lack what a model declares: elsewhere they are the same as before.
    """
    suite = [registry.build(text, "attack") for text in study.attacks]
    elsewhere = [text for text, attack in zip(study.attacks, suite, strict=True) if not must_fit(attack)]
    everybody = [model.name for model in native.models]
    twin, *models = everybody
    surrogate = repr(twin) if is_checkpoint(Path(twin)) else twin
    ignorant = [
        (text, model.name)
        for text, attack in zip(study.attacks, suite, strict=True)
        for model in native.models
        if is_ignorant(attack, model)
    ]
    parts = {
        "adaptive": (dict.fromkeys(text for text, _ in ignorant), list(dict.fromkeys(name for _, name in ignorant))),
        "harder": (_harder(suite, study), everybody),
        "transfer": ([f"transfer(surrogate={surrogate}, attack={t})" for t in elsewhere or ["pgd(steps=40)"]], models),
        "queries": ([_query(suite[0].ball, queries)], everybody),
    }
    return {
        part: study.model_copy(update={"attacks": list(attacks), "models": names, "control": False, "steps": None})
        for part, (attacks, names) in parts.items()
        if attacks and names
    }


def _harder(suite: Sequence[Any], study: Study) -> list[str]:
    """Attacks that try harder in the balls of a suite: more steps, restarts, logit margins and soft Dice."""
    of_suite = (part.steps for attack in suite for part in _climbing(attack))
    steps = study.steps or 2 * max([LEAST_STEPS, *of_suite])
    balls = dict.fromkeys(attack.ball for attack in suite if _is_plain(attack.ball))
    attacks = (PGD(ball, loss, steps, restarts=2) for ball in balls for loss in (margin, soft_dice))
    return [registry.spec(attack) for attack in attacks]


def _climbing(attack: Any) -> Iterator[Any]:
    return (part for part in walk(attack) if isinstance(part, ClimbsInSteps))


def _is_plain(ball: Ball) -> bool:
    return registry.spec_of(ball).name in ("linf", "l2")


def _query(ball: Ball, queries: int | None) -> str:
    """A search without gradients in the ball, or in that of `--eps` where the suite has another."""
    options = [f"ball={registry.spec(ball)}"] if _is_plain(ball) else []
    options += [f"queries={queries}"] if queries else []
    return f"square({', '.join(options)})" if options else "square"
