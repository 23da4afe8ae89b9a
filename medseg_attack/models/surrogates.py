"""Trained models that an attack brings along: read once, held to the weights that a run was begun with."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load, read_card
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.registry.parts import replace_parts, walk
from medseg_attack.types import Task

KEPT = 8  # models in memory: an ensemble is asked for with every batch
DIGITS = 12  # of a hash, in a spec


@register("checkpoint", kind="model")
def checkpoint(task: Task, *, folder: str = "", content: str = "") -> SegModel:
    """A trained model by its folder, as a surrogate: `transfer(surrogate=checkpoint('models/unet'))`.

    Args:
        content: of the weights' hash, which a run adds by itself; other weights in the folder are then refused.

    Raises:
        InputError: it is no checkpoint, holds other weights, or was trained for other classes.
    """
    if not folder:
        raise InputError("expected checkpoint('FOLDER'), got no folder; give the folder of a trained model")
    found = read_card(Path(folder))["weights_sha256"][:DIGITS]
    if content and content != found:
        raise InputError(
            f"expected the weights {content} in {folder}, got {found}: it was trained again; choose another --out"
        )
    return _loaded(folder, found, task)


@functools.lru_cache(maxsize=KEPT)
def _loaded(folder: str, content: str, task: Task) -> SegModel:
    return load(Path(folder), task).requires_grad_(False)


@register("others", kind="model")
def others(task: Task) -> SegModel:
    """All models of the study but the attacked one, as surrogates: leave-one-out."""
    raise InputError("expected a study for the surrogate others, got none; run it through 'medattack attack'")


def _pinned(folder: str) -> Callable[[Task], SegModel]:
    return _one(folder, read_card(Path(folder))["weights_sha256"][:DIGITS])


@functools.lru_cache(maxsize=256)
def _one(folder: str, content: str) -> Callable[[Task], SegModel]:
    """One object per checkpoint, so that attacks which differ in their budget alone are known for it."""
    return functools.partial(checkpoint, folder=folder, content=content)


def pin_surrogates(attack: Any, victim: Path, models: Sequence[Path]) -> Any:
    """The attack, at any depth, with the hash of its surrogates' weights, and with models in place of `others`.

    Args:
        victim: checkpoint that is attacked.
        models: of the study.

    Raises:
        InputError: a surrogate is no checkpoint, or is to be trained first, or there are no others.
    """
    return replace_parts(
        attack, lambda part: _found(part, victim, models) if isinstance(part, functools.partial) else None
    )


def _found(made: "functools.partial[SegModel]", victim: Path, models: Sequence[Path]) -> Any:
    if made.func is checkpoint:
        return _pinned(made.keywords.get("folder", ""))
    if made.func is not others:
        return made
    own = read_card(victim)["weights_sha256"]
    found = tuple(_pinned(str(model)) for model in models if read_card(model)["weights_sha256"] != own)
    if not found:
        raise InputError("expected two models or more for the surrogate others, got one; repeat --model")
    return found


def surrogates(attack: Any) -> Iterator[str]:
    """Folder and hash of every checkpoint that a pinned attack brings along."""
    for part in walk(attack):
        if isinstance(part, functools.partial) and part.func is checkpoint:
            yield f"{part.keywords['folder']} {part.keywords['content']}"
