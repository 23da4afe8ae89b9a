"""Opening a study: its data set, its models by their names and the folder of its results; and runs opened again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.models.model_ref import ModelRef, files_of, resolve
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.surrogates import with_folders
from medseg_attack.models.trust import refuse_untrusted
from medseg_attack.registry.grammar import Items, Literal, Node
from medseg_attack.runs.claim import IDENTITY
from medseg_attack.runs.grid import cells, judged_by_unit, safe
from medseg_attack.runs.stored_files import STUDY_FILE, read_config, read_stored_study
from medseg_attack.runs.study import Study, naming_file
from medseg_attack.runs.workspace import newest_data, newest_model
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.json_files import digest, read_json

_WRITTEN = ("attacks", "losses", "eps", "norm", "steps", "region", "control", "metrics")


def open_study(
    study: Study,
    workspace: Path,
    device: torch.device,
    options: RunOptions,
    out: Path | None = None,
    resolved: Sequence[ModelRef] = (),
) -> OpenedStudy:
    """The study with its attacks parsed, its data set open and its models found.

    Args:
        out: folder of the results; one in the workspace by default, the same for the same study, data and weights.
        resolved: models of another study of the same data; they are not built once more.

    Raises:
        InputError: an attack cannot be parsed, a data set or a model is not found, a model does not fit the data, or
            the study's file names code that was not trusted.
    """
    with naming_file(study):
        return _opened(study, workspace, device, options, out, {model.name: model for model in resolved})


def _opened(
    study: Study,
    workspace: Path,
    device: torch.device,
    options: RunOptions,
    out: Path | None,
    resolved: Mapping[str, ModelRef],
) -> OpenedStudy:
    if study.file is not None:
        refuse_untrusted(study.file_specs, study.file)
    study = _each_once(judged_by_unit(study))
    study = study if out is None else _as_begun(study, out)
    grid = tuple(  # a misspelled attack is reported before anything slow happens
        replace(cell, attack=with_folders(cell.attack, lambda name: surrogate_folder(workspace, name)))
        for cell in cells(study)
    )
    names = list(dict.fromkeys(find_model(workspace, name) for name in study.models))
    data = open_prepared(Path(study.data) if study.data else newest_data(workspace))
    models = with_distinct_labels([resolved.get(name) or resolve(name, data.task) for name in names])
    study = study.model_copy(update={"data": str(data.root), "models": names})
    opened = OpenedStudy(study, grid, data, models, out or Path(), device, options)
    name = f"{safe(data.name)}-{digest(opened.identity)[:8]}"
    return opened if out else replace(opened, out=workspace / "runs" / name)


def _each_once(study: Study) -> Study:
    """The study with metrics in one spelling, so that each has one column, and no loss in two spellings."""
    metrics = [registry.canonical(text, "metric") for text in study.metrics]
    losses: dict[str, str] = {}
    for text in study.losses:
        losses.setdefault(registry.canonical(text, "objective"), text)
    return study.model_copy(update={"metrics": list(dict.fromkeys(metrics)), "losses": list(losses.values())})


def _as_begun(study: Study, out: Path) -> Study:
    """The study as it is written in its folder, if that says the same in other words, such as pgd() for pgd.

    The names of its runs' folders are made of these words.
    """
    if not (out / IDENTITY).is_file():
        return study
    stored = read_json(out / IDENTITY)
    try:
        written = {field: stored[field] for field in _WRITTEN}
        begun = Study.model_validate(study.model_dump() | written)
        is_same = _meaning(begun) == _meaning(study)
    except (InputError, KeyError, ValidationError):  # what is there was written by another version: it is refused
        return study
    return study.model_copy(update=written) if is_same else study


def _meaning(study: Study) -> tuple[set[Any], set[str]]:
    """The runs and metrics of a study, however it is written."""
    runs = {(registry.spec(cell.attack), cell.budget) for cell in cells(study)}
    return runs, {registry.canonical(text, "metric") for text in study.metrics}


def open_model(name: str, workspace: Path, data: Path | None) -> tuple[ModelRef, Prepared]:
    """The model of that name for a data set, by default the newest of the workspace, and that data set."""
    name = find_model(workspace, name)
    prepared = open_prepared(data or newest_data(workspace))
    return resolve(name, prepared.task), prepared


def find_model(workspace: Path, name: str) -> str:
    """The newest checkpoint's folder for a model's name; the name itself for a spec that brings its own weights.

    Args:
        name: of a registered model, a spec, or the folder of a checkpoint.

    Raises:
        InputError: there is no such checkpoint, or a spec that brings its weights is misspelled.
    """
    brings_weights = registry.brings_weights(name) and not Path(name).exists()
    label = _canonical(name, strict=brings_weights)
    if brings_weights:
        label = str(_with_members(workspace, registry.parse(label)))
    try:
        return str(newest_model(workspace, label))
    except InputError:
        if not brings_weights:
            raise
    return label


def _with_members(workspace: Path, spec: registry.Spec) -> registry.Spec:
    """The spec of a model that is made of others, with their folders or specs in the place of their names."""
    wraps = registry.find(spec.name).wraps

    def located(node: Node) -> Node:
        match node:
            case Items(items):
                return Items(tuple(map(located, items)))
            case Literal(str() as name) if name:
                return _as_node(find_model(workspace, name))
            case registry.Spec():
                return _as_node(find_model(workspace, str(node)))
        return node

    keywords = tuple((field, located(node) if field == wraps else node) for field, node in spec.keywords)
    return replace(spec, keywords=keywords) if wraps else spec


def _as_node(name: str) -> Node:
    """The folder of a checkpoint in quotes; a spec as it is."""
    return Literal(name, repr(name)) if is_checkpoint(Path(name)) else registry.parse(name)


def surrogate_folder(workspace: Path, name: str) -> str:
    """The folder of a trained model by its name; what is written as a path is one."""
    return name if len(Path(name).parts) > 1 else find_model(workspace, name)


def _canonical(name: str, *, strict: bool) -> str:
    """A spec as checkpoints spell it; anything else unchanged, or refused if `strict`."""
    try:
        return registry.spec(registry.build(name, "model")) if strict or "(" in name else name
    except InputError:
        if strict:
            raise
        return name


def with_distinct_labels(models: Sequence[ModelRef]) -> tuple[ModelRef, ...]:
    """The models; labels that several of them share are followed by each one's folder: its name, or its whole path."""
    uses = Counter(model.label for model in models)
    folders = Counter(Path(model.name).name for model in models)

    def relabelled(model: ModelRef) -> ModelRef:
        is_folder = is_checkpoint(Path(model.name)) and folders[Path(model.name).name] == 1
        folder = Path(model.name).name if is_folder else model.name
        return replace(model, card={**model.card, "label": f"{model.label} ({folder})"})

    return tuple(model if uses[model.label] == 1 else relabelled(model) for model in models)


def open_run(run: Path, device: torch.device) -> tuple[Prepared, SegModel, ModelRef]:
    """The data set of a finished run, its model, and the reference to it.

    Raises:
        InputError: the run is not finished, its data or the weights of its model have changed since, or its study
            names code that was not trusted.
    """
    study, config = read_stored_study(run.parent.parent), read_config(run)
    refuse_untrusted(study["models"], run.parent.parent / STUDY_FILE)
    data = open_data_of(run)
    for model_ref in [resolve(name, data.task) for name in study["models"]]:
        if model_ref.weights_hash == config["weights"]:
            return data, model_ref.load(data.task, device), model_ref
    raise InputError(f"expected the model of {run} among {study['models']}, got others; {_how_to_restore(study)}")


def open_data_of(run: Path) -> Prepared:
    """The data set of a finished run.

    Raises:
        InputError: the run is not finished, or its data have changed since.
    """
    if not (run / "run.json").exists():
        raise InputError(f"expected a finished run in {run}, got one without run.json; run its attack again")
    root = Path(read_stored_study(run.parent.parent)["data"])
    if not root.is_absolute() and not root.exists():
        raise InputError(
            f"expected the data of {run} in {root}, got no such folder here; "
            "type this command in the folder that the attack was started in"
        )
    data = open_prepared(root)
    if data.fingerprint != read_config(run)["data"]:
        raise InputError(f"expected the data of {run} in {data.root}, got another fingerprint; prepare it again")
    return data


def _how_to_restore(study: Mapping[str, Any]) -> str:
    """The parts of a model that may have changed since a run: a checkpoint, or any file that a model's spec names."""
    specs = [name for name in study["models"] if not is_checkpoint(Path(name))]
    files = [str(path) for name in specs for path in files_of(name)]
    if not files:
        return "restore the checkpoint"
    return f"restore what changed since ({', '.join(dict.fromkeys(files))}), or attack again into another --out"
