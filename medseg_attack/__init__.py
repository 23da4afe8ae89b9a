"""How far does a perturbation that nobody can see move a medical segmentation model, organ by organ?

`import medseg_attack as ma` offers the names below; each is loaded when it is first used, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; `_NAMES` is what runs
    from medseg_attack.errors import InputError as InputError
    from medseg_attack.library.attacking import attack as attack
    from medseg_attack.library.attacking import score as score
    from medseg_attack.library.certifying import certify as certify
    from medseg_attack.library.detecting import detect as detect
    from medseg_attack.library.drawing import draw as draw
    from medseg_attack.library.models import load as load
    from medseg_attack.library.models import wrap as wrap
    from medseg_attack.library.specs import build as build
    from medseg_attack.library.specs import names as names
    from medseg_attack.library.tables import open_data as open_data
    from medseg_attack.library.tables import read_runs as read_runs
    from medseg_attack.library.tables import summary as summary

__version__ = "0.1.0"

_NAMES = {
    "wrap": "library.models",
    "load": "library.models",
    "build": "library.specs",
    "names": "library.specs",
    "attack": "library.attacking",
    "score": "library.attacking",
    "certify": "library.certifying",
    "detect": "library.detecting",
    "draw": "library.drawing",
    "open_data": "library.tables",
    "read_runs": "library.tables",
    "summary": "library.tables",
    "InputError": "errors",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_NAMES, "__version__"])
