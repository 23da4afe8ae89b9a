"""A command that only prints what is known beforehand loads nothing that takes long to load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import dice_of, write_run

HEAVY = ("torch", "numpy", "pandas", "scipy", "pyarrow", "monai", "pydantic", "yaml", "safetensors", "PIL")
UNUSED = ("rich.progress", "rich.markdown", "html.entities", "importlib.metadata", "multiprocessing")

PROGRAM = """\
import json, sys
from medseg_attack.__main__ import main
sys.argv = ["medattack", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    sys.stderr.write(json.dumps([end.code, sorted(sys.modules)]))
"""


def modules(*words: str) -> set[str]:
    """Names of the modules that a command line loads, which must end well."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    code, names = json.loads(result.stderr.splitlines()[-1])
    assert code == 0
    return set(names)


@pytest.mark.parametrize("line", ["--help", "--version", "attack --help", "compare --help"])
def test_help_loads_nothing_that_takes_long_to_load(line: str) -> None:
    assert not modules(*line.split()) & {*HEAVY, *UNUSED}


@pytest.mark.parametrize(
    "what", ["attacks", "attacks --explain", "defences --explain", "goals", "criteria", "balls", "datasets", "metrics"]
)
def test_names_are_listed_without_loading_what_they_stand_for(what: str) -> None:
    assert not modules("ls", *what.split()) & {*HEAVY, *UNUSED}


@pytest.mark.parametrize("line", ["ls flags", "explain MA007"])
def test_flags_are_explained_without_loading_what_their_checks_need(line: str) -> None:
    assert not modules(*line.split()) & {*HEAVY, *UNUSED}


def test_a_page_without_pictures_is_written_without_torch(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "runs", dice_of(0, patients=2)).parent
    assert "torch" not in modules("report", str(runs), "--worst", "0", "--out", str(tmp_path / "page"))
    assert (tmp_path / "page" / "index.html").is_file()
