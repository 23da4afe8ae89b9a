"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set; skips where it is absent, since no scan is part of this project."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MEDATTACK_TEST_DATA", default))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} in {root}; set MEDATTACK_TEST_DATA to where the data sets are")
        return root / name

    return find
