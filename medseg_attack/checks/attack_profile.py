"""Facts that a reader asks for before trusting an attack's number: its authors, what it must know, what it costs."""

from typing import Any

import torch
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.wang2024 import FgsmWang2024
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import Entry
from medseg_attack.registry.declared import cited
from medseg_attack.registry.parts import walk
from medseg_attack.types import Attack, Image, LogOdds, Task

_UNKNOWN = "-"
_PASSES = 120  # forward passes after which an attack is no longer followed


class _PassLimitError(Exception):
    """So many passes that counting on would take long."""


class _LimitedModel(CountedModel):
    """A model that counts passes up to a limit."""

    def __call__(self, image: Image) -> LogOdds:
        if self.forwards == _PASSES:
            raise _PassLimitError
        return super().__call__(image)


def uses_queries(attack: Any) -> bool:
    """Whether the attack, or a part of it, asks the model without its gradient."""
    return any(
        entry.threat.startswith("queries") for entry in map(registry.entry_of, walk(attack)) if entry is not None
    )


def asks_model(attack: Any) -> bool:
    """Whether the attack, or a part of it, depends on the model; clean, stored and random images do not."""
    entries = [entry for entry in map(registry.entry_of, walk(attack)) if entry is not None and entry.kind == "attack"]
    return any(entry.threat != "no model" for entry in entries)


def paper_of(entry: Entry) -> str:
    """The paper of an attack or a defence: that of its entry, or the one that its docstring cites in brackets."""
    return entry.paper or cited(entry.doc)


def profile(name: str) -> dict[str, str]:
    """Paper, threat model, norm, passes and defaults of a registered attack.

    What its entry leaves open is read off the attack: the paper that its docstring cites in brackets, the norm of its
    default ball, the passes that its defaults take on one small image, followed up to a limit. An attack that
    needs more than its defaults to run (a stored run, a surrogate) has no measured cost.
    """
    entry, attack = registry.find(name, "attack"), _default_attack(name)
    passes = None if attack is None else _passes(attack)
    threat = cost = norm = _UNKNOWN
    if passes is not None:
        forwards, backwards = passes
        # gradients need the weights, several passes need answers; a single pass only judges the result
        threat = "white box" if backwards else "queries" if forwards > 1 else "no model"
        cost = f"over {_PASSES}" if forwards >= _PASSES else f"{forwards} forward, {backwards} backward"
    if entry.accepts_any_ball:
        norm = "linf or l2"
    elif attack is not None and entry.takes("ball"):
        norm = registry.spec_of(attack.ball).name
    return {
        "name": name,
        "paper": paper_of(entry),
        "threat": entry.threat or threat,
        "norm": entry.norm or norm,
        "passes": cost,
        "defaults": registry.options(entry),
        "what": entry.summary,
    }


def _default_attack(name: str) -> Attack | None:
    """The attack with its defaults; None of one that needs more."""
    try:
        attack: Attack = registry.build(name, "attack")
    except InputError:
        return None
    return attack


def _passes(attack: Attack) -> tuple[int, int] | None:
    """Forward and backward passes of the attack's defaults on a 12 x 12 image of which every pixel counts alone."""
    channels = attack.channels if isinstance(attack, FgsmWang2024) else 1  # it perturbs copies of the one channel
    net = nn.Conv2d(channels, 1, 1)
    nn.init.constant_(net.weight, 10 / channels)
    nn.init.constant_(net.bias, -5.0)  # type: ignore[arg-type]
    model = SegModel(net, Task("one", ("organ",)), in_channels=channels)
    image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    counted = _LimitedModel(model)
    try:
        with frozen(model):
            attack(counted, image, image >= 0.5, [0])
    except _PassLimitError:
        pass
    except (InputError, TypeError):
        return None
    return counted.forwards, counted.backwards
