"""Anything registered, by its spec or its kind."""

from typing import Any

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.library.arguments import checked
from medseg_attack.registry.table import KINDS


@checked
def build(spec: str) -> Any:
    """The object that a spec describes, as the command line reads it; `registry.spec` is the inverse.

    A model is for a task that its spec does not name: `load` builds it for a data set.

    Raises:
        InputError: the text is no spec, or a name, a field or a value in it is not known.

    Examples:
        >>> import medseg_attack as ma
        >>> ma.build("pgd(linf(4/255), steps=40)").steps
        40
    """
    return registry.build(spec, registry.find(registry.parse(spec).name).kind)


@checked
def names(kind: str = "attack") -> list[str]:
    """The names of all that is registered of a kind, sorted: "attack", "objective", "ball", "certificate" ...

    Raises:
        InputError: there is no such kind.

    Examples:
        >>> import medseg_attack as ma
        >>> "linf" in ma.names("ball")
        True
    """
    if kind not in KINDS:
        raise InputError(f"expected one of {', '.join(KINDS)}, got {kind!r}; choose one")
    return registry.names(kind)
