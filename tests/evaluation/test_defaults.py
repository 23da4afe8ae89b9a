"""What is meant where nothing is said: a parameter of one name has one default, wherever it stands."""

import importlib
import inspect
from dataclasses import is_dataclass
from typing import Any

import pytest

from medseg_attack.attacks.evading.evading import Evading

DEFAULTS: dict[str, Any] = {
    "batch_size": 16,
    "checked": True,
    "checks": False,
    "eps": 0.0,
    "is_colour": False,
    "keep_headers": False,
    "keep_images": False,
    "margin": 3,
    "number": 0,
    "partial": False,
    "ring": 3,
    "save": "none",
    "seed": 0,
    "shard": (0, 1),
}
DETECTORS = DEFAULTS | {"batch_size": 32, "evaders": (Evading(),)}  # nothing is kept for a gradient
OF_MODULES = {
    "medseg_attack.evaluation.certifying": DEFAULTS,
    "medseg_attack.evaluation.crafting": DEFAULTS,
    "medseg_attack.evaluation.detection.fitting": DETECTORS,
    "medseg_attack.evaluation.detection.scoring": DETECTORS,
    "medseg_attack.evaluation.detection.screening": DETECTORS,
    "medseg_attack.evaluation.factors.images": DEFAULTS,
    "medseg_attack.evaluation.factors.organs": DEFAULTS,
    "medseg_attack.evaluation.loop": DEFAULTS,
    "medseg_attack.evaluation.outcomes": DEFAULTS,
    "medseg_attack.evaluation.pictures.attacked_scans": DEFAULTS,
    "medseg_attack.evaluation.studies.opened": DEFAULTS,
}


@pytest.mark.parametrize("name", OF_MODULES)
def test_a_default_is_that_of_its_name(name: str) -> None:
    module = importlib.import_module(name)
    own = [each for each in vars(module).values() if getattr(each, "__module__", "") == name]
    callables = [each for each in own if inspect.isfunction(each) or is_dataclass(each)]
    known = [
        (f"{each.__name__}({parameter.name})", parameter.default, OF_MODULES[name].get(parameter.name))
        for each in callables
        for parameter in inspect.signature(each).parameters.values()
        if isinstance(parameter.default, bool | int | float | tuple) and parameter.default != ()
    ]
    assert known
    assert [(label, default) for label, default, _ in known] == [(label, expected) for label, _, expected in known]
