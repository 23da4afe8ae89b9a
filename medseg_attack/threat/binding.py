"""Binding: attacks, balls, goals and models are told their task, their cases (spacing in mm) and their donors.

`evaluation.crafting` calls it, and balls in mm (`threat.balls.base`) read the spacing; what is not bound takes a pixel
for 1 mm, or refuses.
"""

from typing import Any, TypeVar

from medseg_attack.registry.parts import replace_inner, replace_parts
from medseg_attack.types import Binds, Setting

T = TypeVar("T")


def bind(thing: T, setting: Setting) -> T:
    """A copy of an attack or a model in which every part that must know its setting does, inner parts first."""

    def in_setting(part: Any) -> Any:
        if not isinstance(part, Binds) or isinstance(part, type):
            return None
        return replace_inner(part, in_setting).bind(setting)

    result: T = replace_parts(thing, in_setting)
    return result
