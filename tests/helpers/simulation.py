"""benchmarks/coverage.py, which is no part of the package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _simulation() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


SIMULATION = _simulation()
