"""Benchmarks that several processes share, and that go on after they were killed."""

import json
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "parts.py"))


@pytest.mark.parametrize("n", [1, 3, 8, 11])
def test_parts_hold_every_line_once(n: int) -> None:
    lines = list(range(8))
    assert sorted(line for k in range(n) for line in lines[PARTS["part"](f"{k}/{n}")]) == lines


@pytest.mark.parametrize("text", ["4/4", "-1/4", "0/0"])
def test_a_part_that_would_do_the_lines_of_another_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="expected a part k/N with k from 0 to N - 1"):
        PARTS["part"](text)


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_half_a_line_of_a_process_that_was_killed_is_done_again(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "rows" / "0-of-1.jsonl"
    file.parent.mkdir()
    for number in (1, 2):
        PARTS["add"]({"line": number}, file)
    file.write_bytes(file.read_bytes() + b'{"line": 3}\n'[:kept])
    assert PARTS["rows"](tmp_path) == [{"line": 1}, {"line": 2}]
    PARTS["add"]({"line": 3}, file)
    assert PARTS["rows"](tmp_path) == [{"line": 1}, {"line": 2}, {"line": 3}]


def test_a_copy_keeps_the_name_of_its_answers_which_the_command_calls_by_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    extraction = runpy.run_path(str(BENCHMARKS / "extraction.py"))
    printed = SimpleNamespace(stdout=json.dumps({"answers": "probabilities", "fidelity": 0.5}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: printed)
    options = SimpleNamespace(out=tmp_path, victim="v", data="d", test_data="t", steps=1)
    for answers, queries in extraction["lines"]():
        row = extraction["stolen"](options, answers, queries)
        assert (row["answers"], row["n"], row["fidelity"]) == (answers, queries, 0.5)
