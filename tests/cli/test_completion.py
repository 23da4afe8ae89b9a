"""A shell completes the names that a command line may hold: typer asks, as the scripts of the shells make it ask."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from helpers.runs import dice_of, write_run
from test_startup import HEAVY
from typer.testing import CliRunner

from medseg_attack import registry
from medseg_attack.cli import app
from medseg_attack.cli.completion import SOURCES
from medseg_attack.storage.json_files import write_json

PROGRAM = """\
import sys
from medseg_attack.__main__ import main
sys.argv = ["medattack"]
try:
    main()
finally:
    sys.stderr.write(" ".join(sys.modules))
"""
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def question(line: str, home: Path) -> dict[str, str]:
    """The variables by which bash asks for the words at the end of a command line."""
    asked = {"_MEDATTACK_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return {**asked, "MEDATTACK_HOME": str(home)}


def offered(line: str, home: Path) -> list[str]:
    """The words that bash is offered at the end of a command line."""
    result = CliRunner().invoke(app, prog_name="medattack", env=question(line, home))
    assert result.exit_code == 0, result.output
    return list(filter(None, result.stdout.split("\n")))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a data set, a trained model and a run, as far as a listing looks at them."""
    root = tmp_path_factory.mktemp("home")
    write_json(root / "data" / "acdc" / "options.json", {})
    write_json(root / "data" / "acdc" / "dataset.json", {"scans": []})
    write_json(root / "models" / "unet-acdc-1234" / "card.json", {"label": "unet_of_ours"})
    (root / "models" / "unet-acdc-1234" / "weights.safetensors").touch()
    write_run(root / "runs" / "acdc-12345678", dice_of(0, 2), model="unet_of_ours")
    return root


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("medattack attack --attack pg", ["pgd"]),
        ("medattack attack --model m --attack pgd --attack fgs", ["fgsm", "fgsm_wang2024"]),
        ("medattack attack --loss soft_d", ["soft_dice"]),
        ("medattack attack --model unet_of", ["unet_of_ours"]),
        ("medattack certify --model unet_of", ["unet_of_ours"]),
        ("medattack train --model unet_s", ["unet_small"]),
        ("medattack train --loss so", []),
        ("medattack prepare scans --format ac", ["acdc"]),
        ("medattack train --defence trad", ["trades"]),
        ("medattack ls detec", ["detectors"]),
        ("medattack rm models/", ["models/unet-acdc-1234"]),
        ("medattack compare --unit vol", ["volume"]),
    ],
)
def test_names_are_completed(line: str, words: list[str], home: Path) -> None:
    result = offered(line, home)
    assert set(words) <= set(result)
    assert bool(words) == bool(result)
    assert all(word.startswith(line.rpartition(" ")[2]) for word in result)


def test_folders_of_the_workspace_are_completed(home: Path) -> None:
    assert offered(f"medattack train --data {home}/d", home) == [str(home / "data" / "acdc")]
    assert offered(f"medattack compare {home}/r", home) == [str(home / "runs" / "acdc-12345678")]


def test_the_workspace_of_the_line_is_looked_in(home: Path, tmp_path: Path) -> None:
    assert offered("medattack train --data ", tmp_path) == []
    assert offered(f"medattack train --home {home} --data ", tmp_path) == [str(home / "data" / "acdc")]


def test_all_names_of_a_kind_are_offered(home: Path) -> None:
    assert offered("medattack attack --attack ", home) == registry.names("attack")


def test_a_shell_waits_for_no_heavy_library(home: Path) -> None:
    asked = {**os.environ, **question("medattack attack --attack pg", home)}
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=asked, check=True)
    assert "pgd" in result.stdout.split()
    assert not set(result.stderr.split()) & (set(HEAVY) - {"pydantic"})  # typer checks the words so far by it


def test_every_entry_of_the_table_belongs_to_an_option() -> None:
    options = {f"{command} {option.name}" for command, each in COMMANDS.items() for option in each.params}
    options |= {option.split()[1] for option in options}
    assert set(SOURCES) <= options
