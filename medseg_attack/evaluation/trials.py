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
from medseg_attack.evaluation.opening import find_model, open_study
from medseg_attack.evaluation.runner import OpenedStudy, RunOptions, run
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.registry.abilities import ClimbsInSteps
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import safe
from medseg_attack.runs.stored_files import TRIAL_FILE
from medseg_attack.runs.study import Study
from medseg_attack.runs.workspace import with_newest_data
from medseg_attack.storage.files import digest, is_checkpoint, write_json
from medseg_attack.threat.objectives.losses import margin, soft_dice
from medseg_attack.types import Ball

LEAST_STEPS = 40  # of a suite; the attacks that are added to it have twice as many
UNKNOWN = {"MA002", "MA003"}  # no gradient, random: nobody said so, and no attack of the trial knows it
BLOCKED = {"MA001", "MA020", "MA021"}  # as these are, of a model that declares no defence


@dataclass(frozen=True)
class Trial:
    """A group of defended models with one undefended twin.

    Attributes:
        twin: label of the twin.
        defended: labels of the defended models.
        parts: studies by what their attacks know: "native", "adaptive", "transfer" (from the twin) and "queries".
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
        """Runs what is missing, and yields how many (case, attack) pairs are done since the last time."""
        for study in self.parts.values():
            for n_done, _ in run(study):
                yield n_done

    @property
    def non_adaptive(self) -> dict[str, str]:
        """The defended models that no attack of the trial knows, with the codes of the flags that say so."""
        result = {}
        for model in self.parts["native"].models:
            study = self.parts.get("adaptive")
            if study is None or model.black_box:
                result[model.label] = "no gradient"
                continue
            codes = {finding.code for finding in stored.read_before(study.folder(model))}
            declares = model.is_random or model.blocks_gradient or bool(model.base)
            unknown = codes & ((UNKNOWN - {"MA003"} if model.is_random else UNKNOWN) | (set() if declares else BLOCKED))
            if unknown:
                result[model.label] = ", ".join(sorted(unknown))
        return {label: text for label, text in result.items() if label != self.twin}


def open_trials(
    models: Sequence[str],
    twin: str | None,
    study: Study,
    workspace: Path,
    device: torch.device,
    options: RunOptions,
    out: Path | None = None,
) -> list[Trial]:
    """The trials of defended models, one for each twin.

    Args:
        models: names, folders or specs of the defended models.
        twin: that of the undefended twin; None: the model within each of them.
        study: its attacks are the suite; its steps, if any, are those of the attacks that are added to try harder.
        out: folder of the results; one in the workspace by default.

    Raises:
        InputError: a model has no twin or is its own, or cannot be opened.
    """
    study = with_newest_data(workspace, study)
    by_twin: dict[str, list[str]] = {}
    for name in dict.fromkeys(find_model(workspace, model) for model in models):
        base = find_model(workspace, twin) if twin else ModelRef(name, {}).base
        if not base or base == name:
            raise InputError(
                f"expected an undefended twin of {name}, got {base or 'none'}; give --twin NAME, a model that was "
                "trained alike without the defence"
            )
        by_twin.setdefault(base, []).append(name)
    groups = [_studies(base, names, study) for base, names in by_twin.items()]
    opened = [{part: open_study(each, workspace, device, options) for part, each in group.items()} for group in groups]
    data = opened[0]["native"].data
    identity = [{part: each.identity for part, each in group.items()} for group in opened]
    root = out or workspace / "runs" / f"defend-{safe(data.name)}-{digest(identity)[:8]}"
    return [_trial(group, root / f"twin-{n}" if len(opened) > 1 else root) for n, group in enumerate(opened)]


def _trial(parts: Mapping[str, OpenedStudy], root: Path) -> Trial:
    twin, *defended = (model.label for model in parts["native"].models)
    return Trial(twin, tuple(defended), {name: replace(study, out=root / name) for name, study in parts.items()})


def _studies(twin: str, models: Sequence[str], study: Study) -> dict[str, Study]:
    """The studies of one twin, by part."""
    everybody, harder = [twin, *models], _harder([registry.build(text, "attack") for text in study.attacks], study)
    study = study.model_copy(update={"steps": None})

    def with_attacks(attacks: Sequence[str], models: Sequence[str], **more: Any) -> Study:
        return study.model_copy(update={"attacks": list(attacks), "models": list(models), "control": False, **more})

    suite = [registry.build(text, "attack") for text in study.attacks]
    elsewhere = [text for text, attack in zip(study.attacks, suite, strict=True) if not must_fit(attack)]
    surrogate = repr(twin) if is_checkpoint(Path(twin)) else twin
    return {
        "native": with_attacks(study.attacks, everybody, native=True, control=True),
        "adaptive": with_attacks([*study.attacks, *harder], everybody),
        "transfer": with_attacks(
            [f"transfer(surrogate={surrogate}, attack={text})" for text in elsewhere or ["pgd(steps=40)"]], models
        ),
        "queries": with_attacks([_query(suite[0].ball)], everybody),
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


def _query(ball: Ball) -> str:
    """A search without gradients in the ball, or in that of `--eps` where the suite has another."""
    return f"square(ball={registry.spec(ball)})" if _is_plain(ball) else "square"
