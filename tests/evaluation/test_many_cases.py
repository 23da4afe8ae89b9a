"""Work and memory that must not grow with the number of cases: counted, not timed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bright import write_bright
from helpers.command import medattack

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.runs import chunks


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three scans of one shape, which are one chunk."""
    home = tmp_path_factory.mktemp("many")
    write_bright(home / "scans")
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home, "--test", "1")
    return home


def attack(home: Path, out: Path) -> None:
    """Attacks all cases of the workspace."""
    network = f"own('{home}/scans/nets.py:Net')"
    words: list[Any] = ["--model", network, "--attack", "fgsm", "--eps", "0.1", "--no-checks", "--no-control"]
    medattack("attack", "--home", home, *words, "--out", out)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], list[int]]:
    """Replaces a method by one that is counted; the list has an entry for each call."""

    def counted(owner: type, name: str) -> list[int]:
        method, entries = getattr(owner, name), list[int]()
        monkeypatch.setattr(owner, name, lambda *words, **options: (entries.append(1), method(*words, **options))[1])
        return entries

    return counted


def test_a_run_lists_its_cases_as_often_whether_they_are_one_chunk_or_three(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Callable[[type, str], list[int]]
) -> None:
    listed = calls(Prepared, "refs")
    attack(home, tmp_path / "one")
    of_one_chunk = len(listed)
    monkeypatch.setattr(chunks, "CHUNK", 1)
    attack(home, tmp_path / "three")
    assert len(list((tmp_path / "three").rglob("*.parquet"))) == 3
    assert len(listed) - of_one_chunk == of_one_chunk
