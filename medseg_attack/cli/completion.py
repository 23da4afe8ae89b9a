"""Words that a shell completes: registered names, trained models, data sets and runs of the workspace."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, get_args

from typer._click import Context
from typer.models import ParameterInfo

if TYPE_CHECKING:
    from medseg_attack.runs.workspace import Item

Words = Iterator[tuple[str, str]]  # each with its meaning
Source = Callable[[Context, str], Words]


def with_completion(command: Callable[..., None]) -> Callable[..., None]:
    """The command; its options and arguments complete what `SOURCES` has for their names."""
    for parameter in inspect.signature(command).parameters.values():
        source = SOURCES.get(f"{command.__name__} {parameter.name}", SOURCES.get(parameter.name))
        for info in get_args(parameter.annotation):
            if isinstance(info, ParameterInfo) and source is not None:
                info.autocompletion = source
    return command


def _fitting(words_of: Callable[[Context], Words]) -> Source:
    """The words that begin as the last word of the line does."""

    def source(ctx: Context, incomplete: str) -> Words:
        return (pair for pair in words_of(ctx) if pair[0].startswith(incomplete))

    return source


def _registered(ctx: Context, kind: str) -> Words:
    from medseg_attack.registry.declared import declarations

    return ((declaration.name, declaration.summary) for declaration in declarations(kind))


def _items(ctx: Context, *kinds: str) -> "Iterator[Item]":
    """The folders of kinds in the workspace that the line names."""
    from medseg_attack.runs.workspace import home, items

    for kind in kinds:
        yield from items(home(ctx.params.get("home")), kind)


def _models(ctx: Context) -> Words:
    """Trained models by their labels, then those that are registered."""
    labels = dict.fromkeys(item.content for item in _items(ctx, "models") if item.finished)
    yield from ((label, "trained") for label in labels)
    yield from ((name, summary) for name, summary in _registered(ctx, "model") if name not in labels)


def _folders(ctx: Context, kind: str) -> Words:
    return ((str(item.path), item.content) for item in _items(ctx, kind))


def _names(ctx: Context) -> Words:
    """Folders of the workspace as `medattack rm` takes them."""
    from medseg_attack.runs.workspace import ITEMS

    return ((f"{item.kind}/{item.name}", item.content) for item in _items(ctx, *ITEMS))


def _listed(ctx: Context) -> Words:
    from medseg_attack.cli.ls import KINDS

    return ((kind, "") for kind in KINDS)


def _of(kind: str) -> Source:
    return _fitting(partial(_registered, kind=kind))


_ATTACKS, _MODELS = _of("attack"), _fitting(_models)
_DATA, _RUNS = (_fitting(partial(_folders, kind=kind)) for kind in ("data", "runs"))

SOURCES: Mapping[str, Source | None] = {  # by the name of a parameter, or of a command and its parameter
    "attack": _ATTACKS,
    "against": _ATTACKS,
    "robust_by": _ATTACKS,
    "certificate": _of("certificate"),
    "data": _DATA,
    "defence": _of("defence"),
    "factor": _of("factor"),
    "detector": _of("detector"),
    "screen detector": None,  # a file
    "format": _of("dataset"),
    "images": _RUNS,
    "loss": _of("objective"),
    "train loss": None,  # no objective: its help names the few
    "metrics": _of("metric"),
    "model": _MODELS,
    "train model": _of("model"),
    "names": _fitting(_names),
    "reference": _RUNS,
    "runs": _RUNS,
    "spec": _of("poison"),
    "twin": _MODELS,
    "what": _fitting(_listed),
    "new what": None,  # a choice, which completes itself
}
