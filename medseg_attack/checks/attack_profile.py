"""What a reader asks of an attack before trusting its number: whose it is, what it must know, what it costs."""

import re
from typing import Any

import torch
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.parts import walk
from medseg_attack.registry.table import known_as
from medseg_attack.types import Image, LogOdds, Task

_CITED = re.compile(r"\(([^()]*(?:arXiv|doi|ICLR|CVPR|ICCV|ECCV|MICCAI|AISec)[^()]*)\)")


_NOTHING = "-"


_PASSES = 120  # forward passes after which an attack is no longer followed


FAMILIES = (
    "Controls: what every attack must beat",
    "Gradients, in a ball",
    "Made of other attacks",
    "The least change that succeeds",
    "What scanners and bodies do",
    "Without the model's gradient",
    "One perturbation for all scans",
)


class _EnoughError(Exception):
    """So many passes that counting on would take long."""


class _Followed(CountedModel):
    """A model that counts passes up to a limit."""

    def __call__(self, image: Image) -> LogOdds:
        if self.forwards == _PASSES:
            raise _EnoughError
        return super().__call__(image)


def family(name: str) -> str:
    """Where an attack stands in a list of them, one of `FAMILIES`; nothing is run."""
    about = registry.about(name)
    controls, gradients, made, least, physical, blind, universal = FAMILIES
    ball = registry.default(name, "ball") if registry.takes(name, "ball") else None
    return next(
        of
        for of, is_it in (
            (universal, registry.takes(name, "onto") or "other patients" in about.threat),
            (blind, about.threat.startswith(("queries", "surrogate", "that of")) or registry.takes(name, "run")),
            (controls, about.threat == "no model"),
            (made, registry.takes(name, "attack") or registry.takes(name, "attacks") or name in ("sea", "strongest")),
            (least, about.norm.startswith("least") or registry.takes(name, "success")),
            (physical, bool(getattr(ball, "unit", "")) or hasattr(_made(name), "render")),
            (gradients, True),
        )
        if is_it
    )


def uses_queries(attack: Any) -> bool:
    """Whether the attack, or a part of it, asks the model without its gradient."""
    found = (known_as.get(type(part), "") for part in walk(attack))
    return any(registry.about(name).threat.startswith("queries") for name in found if name)


def profile(name: str) -> dict[str, str]:
    """Paper, threat model, norm, passes and defaults of a registered attack.

    What its `About` leaves open is read off the attack: the paper that its docstring cites in brackets, the norm of
    its default ball, the passes that its defaults take on one small image, followed up to a limit. An attack that
    cannot run without being told more (a run, a surrogate) has no measured cost.
    """
    about, cost = registry.about(name), _passes(name)
    cited = _CITED.search(registry.document(name))
    return {
        "name": name,
        "paper": about.paper or (re.sub(r"\s+", " ", cited[1]) if cited else _NOTHING),
        "threat": about.threat or _threat(cost),
        "norm": about.norm or _norm(name),
        "passes": _told(cost),
        "defaults": registry.options(name),
        "what": registry.describe(name),
    }


def _told(cost: tuple[int, int] | None) -> str:
    if cost is None:
        return _NOTHING
    return f"over {_PASSES}" if cost[0] >= _PASSES else f"{cost[0]} forward, {cost[1]} backward"


def _threat(cost: tuple[int, int] | None) -> str:
    """Gradients need the weights, several passes need answers; who makes one pass only looks at what he made."""
    if cost is None:
        return _NOTHING
    return "white box" if cost[1] else "queries" if cost[0] > 1 else "no model"


def _norm(name: str) -> str:
    if registry.takes_any_ball(name):
        return "linf or l2"
    ball = getattr(_made(name), "ball", None)
    return type(ball).__name__.lower() if ball is not None and registry.takes(name, "ball") else _NOTHING


def _made(name: str) -> Any:
    try:
        return registry.build(name, "attack")
    except InputError:
        return None


def _passes(name: str) -> tuple[int, int] | None:
    """Forward and backward passes of the attack's defaults on a 12 x 12 image of which every pixel counts alone."""
    attack = _made(name)
    copies = getattr(attack, "channels", 1)  # of a published variant that perturbs copies of the one channel
    channels = copies if isinstance(copies, int) else 1
    net = nn.Conv2d(channels, 1, 1)
    nn.init.constant_(net.weight, 10 / channels)
    nn.init.constant_(net.bias, -5.0)  # type: ignore[arg-type]
    model = SegModel(net, Task("one", ("organ",)), in_channels=channels)
    image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    metered = _Followed(model)
    try:
        with frozen(model):
            attack(metered, image, image >= 0.5, [0])
    except _EnoughError:
        pass
    except (InputError, TypeError):
        return None
    return metered.forwards, metered.backwards
