"""What prepare reads off folders grows with the number of scans, not with its square."""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.scans import write_uw


class Listed:
    """Counts the names that folders are listed with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = 0
        self._listdir, self._scandir = os.listdir, os.scandir
        monkeypatch.setattr(os, "listdir", self.listdir)
        monkeypatch.setattr(os, "scandir", self.scandir)

    def listdir(self, path: Any = ".") -> list[Any]:
        names = self._listdir(path)
        self.names += len(names)
        return names

    def scandir(self, path: Any = ".") -> Any:
        with self._scandir(path) as entries:
            self.names += sum(1 for _ in entries)
        return self._scandir(path)


@pytest.mark.parametrize("again", [False, True])
def test_twice_the_scans_list_twice_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    names = {}
    for patients in (5, 10, 20, 40):  # the first one also imports
        source = write_uw(tmp_path / f"{patients}", patients=patients)
        words = "prepare", source, "--format", "uw_madison", "--out", tmp_path / f"data{patients}", "--jobs", "1"
        if again:
            medattack(*words)
        with monkeypatch.context() as patched:
            listed = Listed(patched)
            medattack(*words)
        names[patients] = listed.names
    assert names[40] - names[20] <= 2.1 * (names[20] - names[10]) > 0
