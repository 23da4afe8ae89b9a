"""`import medseg_attack` offers its names without loading torch, and they are those that its pages name."""

import subprocess
import sys
from pathlib import Path

import pytest

import medseg_attack as ma


def test_the_import_loads_no_torch_and_neither_does_listing_the_names() -> None:
    code = "import sys, medseg_attack as ma; dir(ma); assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ma.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert name in dir(ma)
    assert getattr(ma, name).__doc__


def test_there_are_about_ten_of_them() -> None:
    assert len(ma.__all__) <= 13


def test_names_for_editors_are_those_that_run() -> None:
    text = Path(ma.__file__).read_text(encoding="utf-8")
    imported = {line.split(" as ")[1] for line in text.splitlines() if line.lstrip().startswith("from medseg_attack.")}
    assert imported == set(ma.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'atack'"):
        ma.atack  # noqa: B018
