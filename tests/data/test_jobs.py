"""Data prepared by several processes: byte by byte those of one, with its errors."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command import medattack
from helpers.scans import acdc_paths, write_pair
from helpers.sources import WRITERS, opened, write_pictures

from medseg_attack import registry
from medseg_attack.data.prepared import writing
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError


@pytest.fixture(autouse=True)
def _others_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_format_is_here() -> None:
    assert sorted(WRITERS) == registry.names("dataset")


@pytest.mark.parametrize(("name", "size"), [*((name, None) for name in WRITERS), ("acdc", (20, 14))])
def test_three_processes_write_what_one_writes(name: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    source = opened(name, WRITERS[name](tmp_path / "source"))
    alone, together = tmp_path / "alone", tmp_path / "together"
    done = list(prepare(source, alone, Options(size)))
    assert list(prepare(source, together, Options(size), jobs=3)) == done
    assert files(together) == files(alone)
    assert open_prepared(together).fingerprint == open_prepared(alone).fingerprint
    assert all(scan.reused for scan in prepare(source, together, Options(size)))


@pytest.mark.parametrize("name", WRITERS)
def test_they_name_the_file_that_one_names(name: str, tmp_path: Path) -> None:
    source = opened(name, WRITERS[name](tmp_path / "source"))
    for scan in source.scans[1::2]:
        scan.sources[0].write_bytes(b"not what it was")
    sentences = []
    for jobs in (1, 3):
        with pytest.raises(InputError) as error:
            list(prepare(source, tmp_path / "out", jobs=jobs))
        sentences.append(str(error.value))
        assert not (tmp_path / "out").exists()
    assert sentences[0] == sentences[1]
    assert str(tmp_path / "source") in sentences[0]


def test_what_is_interrupted_is_gone_on_with_by_any_number_of_processes(tmp_path: Path) -> None:
    source = opened("acdc", WRITERS["acdc"](tmp_path / "source"))
    whole, out = tmp_path / "whole", tmp_path / "out"
    list(prepare(source, whole))
    interrupted = prepare(source, out, jobs=2)
    next(interrupted)
    interrupted.close()
    assert not list(out.rglob("*.part"))
    assert not (out / "dataset.json").exists()
    assert next(iter(prepare(source, out))).reused
    list(prepare(source, out, jobs=3))
    assert files(out) == files(whole)


def test_the_command_takes_a_number_of_processes(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "source")
    medattack("prepare", root, "--format", "folder", "--out", tmp_path / "one", "--jobs", 1)
    medattack("prepare", root, "--format", "folder", "--out", tmp_path / "two", "--jobs", 2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    error = medattack("prepare", root, "--format", "folder", "--out", tmp_path / "none", "--jobs", 0, code=2)
    assert "jobs" in error.stderr
    assert not (tmp_path / "none").exists()


def test_the_memory_that_a_scan_may_take_is_that_of_the_command(tmp_path: Path) -> None:
    root = WRITERS["acdc"](tmp_path / "source")
    write_pair(*acdc_paths(root, 3), image=np.random.default_rng(0).integers(0, 9, (300, 300, 3)).astype(np.int16))
    words = ("prepare", root, "--format", "acdc", "--out", tmp_path / "out", "--max-gb", 0.001)
    one, three = (medattack(*words, "--jobs", jobs, code=2).stderr for jobs in (1, 3))
    assert one == three
    assert "patient003" in one
