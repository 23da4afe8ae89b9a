"""The options of a training, as they were written and with nothing left open."""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.training.base import TrainingDefence, require_ready
from medseg_attack.errors import InputError, plural
from medseg_attack.models.checkpoints import read_card
from medseg_attack.models.surrogates import pinned, without_hash
from medseg_attack.registry import build, find, parse_call, spec
from medseg_attack.registry.foreign import at_fault, part_name
from medseg_attack.registry.parts import walk
from medseg_attack.registry.table import Bound, entry_of, kind_of
from medseg_attack.runs.rows import Knowledge
from medseg_attack.storage.json_files import digest
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.training.augment import TrainingData, parts
from medseg_attack.training.losses import training_loss
from medseg_attack.types import Attack, CaseRef

STEPS = 3000  # of the optimiser, for which the default number of epochs is chosen: 5 minutes on two CPU cores
REPAIRING = ("scale_free",)  # networks that are said to hold no backdoor, and no poison here knows
MANY_GRIDS = (160, 160)  # where scans of several shapes meet if neither the model nor --size says so


@dataclass(frozen=True)
class Options:
    """Everything that determines the weights, besides the data.

    Attributes:
        model: a registry spec.
        epochs: 0: enough for `STEPS` optimiser steps.
        lr: AdamW's at the start; it falls to 0 along a cosine.
        fold: that is validated on.
        size: the network's grid; (): the model's own choice.
        encoder_weights: "imagenet" downloads; "" does not.
        patients: "k/N": the k-th (from 0) of N parts of the patients to train on; "": all of them.
        init: checkpoint whose weights training begins with, as far as they fit; "": random ones.
        defences: registry specs of training defences, each of which computes its loss through those after it.
        robust_by: spec of the attack on validation patients whose Dice chooses the best epoch; "": clean Dice does,
            unless there are defences.
        augment: whether training cases are flipped, turned, moved and brightened at random.
    """

    model: str = "unet_small"
    loss: str = "dice_focal"
    epochs: int = 0
    lr: float = 3e-4
    batch_size: int = 4
    fold: int = 0
    size: tuple[int, ...] = ()
    encoder_weights: str = ""
    seed: int = 0
    patients: str = ""
    init: str = ""
    defences: tuple[str, ...] = ()
    robust_by: str = ""
    augment: bool = True


def resolve(options: Options, data: TrainingData) -> Options:
    """The options with nothing left open: `model` names its size and initial weights, `epochs` is a number.

    Raises:
        InputError: an option is out of range or does not fit the model, or there is nothing to train on.
    """
    network = architecture(options.model)
    fields, arguments, dims = network.fields, network.options, network.dims
    refs = cases_of(options, data, dims)
    if not refs:
        raise InputError(f"expected training cases in {data.name} without fold {options.fold}, got none; check --data")
    for name, low in (("epochs", 0), ("batch_size", 1), ("lr", 1e-12)):
        if not low <= getattr(options, name) < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"expected {option} of at least {low}, got {getattr(options, name)}; check {option}")
    training_loss(options.loss, data.task)
    for field in ("size", "encoder_weights"):
        if value := getattr(options, field):
            if field not in fields:
                raise InputError(
                    f"{network.name} has no {field}, got {value!r}; leave it out or choose another --model"
                )
            arguments[field] = value
    own_grids = [arguments.get(name, fields[name].default) for name in ("size", "window") if name in fields]
    if "size" in fields and not any(own_grids) and len({ref.shape for ref in refs}) > 1:
        if dims == 3:
            raise InputError(
                f"expected a window that patches of the scans of {data.name} are cut to, got none in {options.model}; "
                "add window=(SLICES, ROWS, COLUMNS)"
            )
        arguments["size"] = MANY_GRIDS
    if options.init:
        read_card(Path(options.init))
    window = arguments.get("window", ())
    cases = sum(parts(ref, window) for ref in refs) if window else len(refs)
    defences = training_defences(options.defences)
    per_epoch = max(cases // options.batch_size, 1) * replays(defences)
    return dataclasses.replace(
        options,
        model=network.spec,
        epochs=options.epochs or math.ceil(STEPS / per_epoch),
        size=(),
        encoder_weights="",
        defences=tuple(spec(defence) for defence in defences),
        robust_by=_robust_by(options.robust_by, defences),
    )


def training_defences(texts: Sequence[str]) -> list[TrainingDefence]:
    """The defences of these specs, each once, with the weights' hash of the models that they name.

    Raises:
        InputError: one of them is no training defence, or names a folder that is no checkpoint.
    """
    defences: list[TrainingDefence] = []
    for text in texts:
        defence = pinned(build(text, "defence"))
        if not isinstance(defence, TrainingDefence):
            raise InputError(
                f"expected a training defence for --defence, got {spec(defence)}, which stands in front of a model; "
                "see 'medattack ls defences'"
            )
        defences.append(defence)
    return list({spec(defence): defence for defence in defences}.values())


def replays(defences: Sequence[TrainingDefence]) -> int:
    """Optimiser steps for each batch."""
    return math.prod(defence.replays for defence in defences)


def _robust_by(text: str, defences: Sequence[TrainingDefence]) -> str:
    """The attack that chooses the best epoch: of 10 steps in the ball of the first defence, if that is of a norm.

    Raises:
        InputError: the attack must be fitted first.
    """
    if text or not defences:
        attack = build(text, "attack") if text else None
    else:
        attack = next(filter(None, map(_short_attack, defences)), PGD(Linf(4 / 255), steps=10))
    require_ready(attack, "--robust-by")
    return spec(attack) if attack is not None else ""


def _short_attack(defence: TrainingDefence) -> Attack | None:
    """PGD of 10 steps in the defence's norm ball, or else the attack that it trains with; None without both."""
    inner: dict[str, Any] = {}
    for part in walk(defence):
        inner.setdefault(kind_of(part), part)
    ball = inner["attack"].ball if "attack" in inner else inner.get("ball")
    if isinstance(ball, Linf | L2):
        return PGD(ball, steps=10)
    attack: Attack | None = inner.get("attack")
    return attack


@dataclass(frozen=True)
class Architecture:
    """A network to train: the innermost one of a spec, and those that alter its layers.

    Attributes:
        name: of the innermost network.
        options: of that network; may be changed.
        around: the models that alter it, outermost first, without the field `model`.
    """

    name: str
    options: dict[str, Any]
    around: tuple[Bound, ...] = ()

    @property
    def fields(self) -> Mapping[str, inspect.Parameter]:
        """The options that the innermost network takes."""
        return find(self.name).fields

    @property
    def dims(self) -> int:
        """The number of spatial axes of its cases."""
        return int(self.options.get("dims", self.fields["dims"].default)) if "dims" in self.fields else 2

    @property
    def altered_by(self) -> tuple[str, ...]:
        """The names of the models that alter it, outermost first."""
        return tuple(entry.name for outer in self.around if (entry := entry_of(outer)) is not None)

    @property
    def spec(self) -> str:
        """The text that all of it is built from."""
        model = Bound(find(self.name).make, tuple(self.options.items()))
        for outer in reversed(self.around):
            model = Bound(outer.function, (("model", model), *outer.options))
        return spec(model)


def architecture(model: str) -> Architecture:
    """The network of a spec.

    Raises:
        InputError: it is trained already.
    """
    name, options = parse_call(model, "model")
    if name in ("checkpoint", "others"):
        raise InputError(f"expected an architecture for --model, got {name}, which is trained; start from it by --init")
    if not find(name).takes("model"):
        return Architecture(name, options)
    network = architecture(spec(options.pop("model", find(name).default("model"))))
    own = Bound(find(name).make, tuple(options.items()))
    return dataclasses.replace(network, around=(own, *network.around))


def cases_of(options: Options, data: TrainingData, dims: int) -> Sequence[CaseRef]:
    """The cases to train on: of all patients outside the fold, or of one part of them.

    Parts of one number are disjoint, and 0/4 lies in 0/2: who belongs to them depends on the patients' names alone.

    Raises:
        InputError: `patients` is not k/N, or there are not so many patients.
    """
    refs = data.refs("train", options.fold, dims)
    if not options.patients:
        return refs
    k, _, n = options.patients.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise InputError(
            f"expected --patients as k/N with 0 <= k < N, got {options.patients!r}; write 0/2 for the first half"
        )
    groups = sorted({ref.group for ref in refs}, key=lambda group: crc32(group.encode()))
    if int(n) > len(groups):
        raise InputError(
            f"expected --patients of {len(groups)} parts at most, got {n}: {data.name} has "
            f"{plural(len(groups), 'patient')} to train on; take a smaller N"
        )
    part = set(groups[int(k) * len(groups) // int(n) : (int(k) + 1) * len(groups) // int(n)])
    return [ref for ref in refs if ref.group in part]


def poison_of(data: TrainingData) -> str:
    """The poison that some training patients of the data carry; "" of clean ones."""
    facts = data.options.get("poison") or {}
    return str(facts["spec"]) if facts.get("patients") else ""


def backdoor_knowledge(plan: Options, data: TrainingData) -> Knowledge:
    """Whether a backdoor of the checkpoint that a training begins with knows how the training would remove it.

    Clean data alone tune a poisoned model, and no backdoor is trained to know that. Nor is a trigger fitted to the
    connections of a network that is to hold none (`REPAIRING`).

    Returns:
        "adaptive" or "native"; "" where the training removes none.

    Raises:
        InputError: the checkpoint's card is damaged, or names a rule that there is not.
    """
    if poison_of(data) and any(name in REPAIRING for name in architecture(plan.model).altered_by):
        return "native"
    if not plan.init:
        return ""
    card = read_card(Path(plan.init))
    was_poisoned = bool(card.get("dataset", {}).get("poison"))
    rules = (card.get("training") or {}).get("defences", ()) if was_poisoned else ()
    before = [build(text, "defence") for text in rules]
    known = {_knowledge_of(build(text, "defence"), before) for text in plan.defences} - {""}
    if not known:
        return "native" if was_poisoned and not poison_of(data) else ""
    return "native" if "native" in known else "adaptive"


def _knowledge_of(defence: TrainingDefence, before: Sequence[TrainingDefence]) -> Knowledge:
    known = defence.knowledge(before)
    if not isinstance(known, str) or known not in ("", "native", "adaptive"):
        raise at_fault(
            defence,
            f"expected 'native', 'adaptive' or '' from knowledge() of {part_name(defence)}, got {known!r:.60}; repair "
            "that code",
        )
    return known


def label(model: str, defences: Sequence[str] = ()) -> str:
    """The name of a trained model on the command line: its spec without grid and initial weights, and its defences."""
    network = architecture(model)
    kept = {field: value for field, value in network.options.items() if field not in ("size", "encoder_weights")}
    own = dataclasses.replace(network, options=kept).spec
    return " + ".join([own, *(spec(without_hash(build(text, "defence"))) for text in defences)])


def folder_name(plan: Options, data: TrainingData) -> str:
    """The name of the checkpoint's folder: model, data set and a hash of both and of every option."""
    options = json.loads(json.dumps(dataclasses.asdict(plan)))
    for option in ("defences", "robust_by", "augment"):  # so that a plain training has the name that it had before them
        if getattr(plan, option) == getattr(Options(), option):
            del options[option]
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", label(plan.model, plan.defences)).strip("-")[:80]
    data_name = re.sub(r"[^A-Za-z0-9_.]+", "-", data.name).strip("-")
    return f"{name}-{data_name}-{digest([options, data.fingerprint])[:6]}"


def warnings(plan: Options, data: TrainingData) -> list[str]:
    """Notes on what a person should know before the training: parts without patients, classes that cannot be learnt."""
    dims = architecture(plan.model).dims
    refs = cases_of(plan, data, dims)
    notes = []
    if not data.refs("val", plan.fold, dims):
        notes.append(f"{data.name} has no patients to validate on; the last epoch is taken, not the best one")
    missing = set(data.task.scored)
    for ref in refs:
        missing -= {k for k in missing if bool(data.read(ref).target[k].any())}
        if not missing:
            break
    if missing:
        names = ", ".join(data.task.classes[k] for k in sorted(missing))
        notes.append(f"no training case of {data.name} has {names}; the model cannot learn that")
    return notes
