"""Surrogates: trained models that belong to an attack, read once and held to the weights that a run began with."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load, read_buildable_card, read_card
from medseg_attack.models.model_ref import checkpoint_hash
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build, entry_of, register, shown
from medseg_attack.registry.parts import replace_parts, walk
from medseg_attack.registry.table import Bound, kind_of
from medseg_attack.types import Image, Model, Task

MODELS_IN_MEMORY = 8  # every batch asks for the models of an ensemble
HASH_DIGITS = 12  # of weights, in a spec


@register("checkpoint", kind="model")
def checkpoint(task: Task, *, folder: str = "", content: str = "") -> SegModel:
    """A trained model by its folder, as a surrogate: `transfer(surrogate=checkpoint('models/unet'))`.

    Args:
        folder: the folder of the checkpoint.
        content: the first 12 digits of the weights' hash, which a run adds by itself; other weights are then refused.

    Raises:
        InputError: the folder is no checkpoint, holds other weights, or its model was trained for other classes.
    """
    if not folder:
        raise InputError("expected checkpoint('FOLDER'), got no folder; give the folder of a trained model")
    stored = _content(Path(folder))
    if content and content != stored:
        raise InputError(
            f"expected the weights {content} in {folder}, got {stored}: it was trained again; choose another --out"
        )
    return _load(folder, stored, task)


@functools.lru_cache(maxsize=MODELS_IN_MEMORY)
def _load(folder: str, content: str, task: Task) -> SegModel:
    return load(Path(folder), task).requires_grad_(False)


@register("others", kind="model")
def others(task: Task) -> SegModel:
    """All models of the study but the attacked one, as surrogates: leave-one-out.

    Raises:
        InputError: there is no study.
    """
    raise InputError("expected a study for the surrogate others, got none; run it through 'medattack attack'")


def _content(folder: Path) -> str:
    return checkpoint_hash(read_buildable_card(folder))[:HASH_DIGITS]


def _pinned(folder: str) -> Bound:
    return Bound(checkpoint, (("folder", folder), ("content", _content(Path(folder)))))


def with_folders(attack: Any, folder_of: Callable[[str], str]) -> Any:
    """The attack with the folder of each surrogate in place of its name in the workspace.

    Args:
        folder_of: the folder of the checkpoint of a name.
    """

    def change(part: Any) -> Any:
        if not isinstance(part, Bound) or part.function is not checkpoint:
            return None
        options = dict(part.options)
        name = options.get("folder", "")
        return Bound(checkpoint, tuple((options | {"folder": folder_of(name)}).items())) if name else None

    return replace_parts(attack, change)


def by_folder(model: Any, field: str) -> Any:
    """A model that a spec names, or a tuple of them, with folders replaced by the registered models that load them.

    Args:
        field: that names it, for the error.

    Raises:
        InputError: it is neither a folder nor a model.
    """
    if isinstance(model, tuple):
        return tuple(by_folder(part, field) for part in model)
    if isinstance(model, str):
        return build(f"checkpoint({model!r})", "model")
    if model is not None and not (callable(model) and kind_of(model) in ("model", "")):
        raise InputError(
            f"expected {field} to be a checkpoint's folder or a model, got {shown(model)}; write 'FOLDER', or a "
            "spec such as nnunet('RESULTS')"
        )
    return model


def ready(model: Model, image: Image) -> Model:
    """The model on the image's device and of its type, in evaluation mode and with fixed weights."""
    if isinstance(model, nn.Module):
        return model.to(image).eval().requires_grad_(False)
    return model


def pinned(value: Any) -> Any:
    """The value, such as a defence with a teacher, with the weights' hash in each of its checkpoints.

    Raises:
        InputError: one of them is no checkpoint.
    """

    def change(part: Any) -> Any:
        entry = entry_of(part)
        return _pin(part, Path(), ()) if entry is not None and entry.make is checkpoint else None

    return replace_parts(value, change)


def without_hash(value: Any) -> Any:
    """The value with the folder's own name alone in each of its checkpoints, for people to read."""

    def change(part: Any) -> Any:
        if not isinstance(part, Bound) or part.function is not checkpoint:
            return None
        return Bound(checkpoint, (("folder", Path(dict(part.options)["folder"]).name),))

    return replace_parts(value, change)


def pin_surrogates(attack: Any, victim: Path, models: Sequence[Path]) -> Any:
    """The attack with the weights' hash in each of its surrogates, and with models in place of `others`.

    Args:
        attack: its surrogates may be parts of parts.
        victim: the checkpoint that is attacked.
        models: all checkpoints of the study.

    Raises:
        InputError: a surrogate is no checkpoint, or is to be trained first, or there are no others.
    """
    return replace_parts(attack, lambda part: _pin(part, victim, models) if kind_of(part) == "model" else None)


def _pin(surrogate: Any, victim: Path, models: Sequence[Path]) -> Any:
    entry = entry_of(surrogate)
    if entry is not None and entry.make is checkpoint:
        return _pinned(dict(surrogate.options)["folder"] if isinstance(surrogate, Bound) else "")
    if surrogate is not others:
        return surrogate
    own = read_card(victim)["weights_sha256"]
    rest = tuple(_pinned(str(model)) for model in models if read_card(model)["weights_sha256"] != own)
    if not rest:
        raise InputError("expected two models or more for the surrogate others, got one; repeat --model")
    return rest


def surrogates(attack: Any) -> Iterator[str]:
    """Folder and hash of every surrogate of a pinned attack."""
    for part in walk(attack):
        if isinstance(part, Bound) and part.function is checkpoint:
            yield "{folder} {content}".format(**dict(part.options))
