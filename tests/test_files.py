"""Files and folders: what leaves a folder is refused, of two writers one waits, and a killed one holds nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from hypothesis import given
from hypothesis import strategies as st

from medseg_attack import files
from medseg_attack.errors import InputError, reason
from medseg_attack.files import LOCK, claim_json, inside, is_below, locked, read_json, write_json

PARTS = st.lists(st.sampled_from(["..", ".", "a", "link", "", "x y", "\0", "~", "b.npy"]), max_size=5)


@given(parts=PARTS, absolute=st.booleans())
def test_a_path_is_inside_of_its_folder_or_refused(parts: list[str], absolute: bool, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "inside"
    if not folder.exists():
        folder.mkdir()
        (folder / "link").symlink_to(folder.parent)
    name = ("/" if absolute else "") + "/".join(parts)
    try:
        path = inside(folder, name)
    except InputError:
        return
    assert os.path.realpath(path).startswith(os.path.realpath(folder) + "/")
    assert is_below(name)


def test_a_folder_that_is_a_link_is_the_folder_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to("real")
    assert inside(tmp_path / "named", "a/b.npy") == tmp_path / "named" / "a" / "b.npy"


HOLD = """
import sys, time
from pathlib import Path
from medseg_attack.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_lock_is_waited_for_and_ends_with_a_killed_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    process = holder(folder)
    killer = threading.Timer(0.5, lambda: os.kill(process.pid, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    with locked(folder) as lock:
        assert time.monotonic() - start > 0.3
        assert lock.is_alone()
        assert (folder / LOCK).exists()
    assert process.wait() == -signal.SIGKILL
    assert "waiting for another process" in caplog.text
    assert list(folder.iterdir()) == []  # it was there before


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "a").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "full", "old"]


def test_shared_locks_know_whether_they_are_alone(tmp_path: Path) -> None:
    with locked(tmp_path, shared=True) as one:
        with locked(tmp_path, shared=True) as other:
            assert not one.is_alone()
            assert not other.is_alone()
        assert one.is_alone()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "out"):
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("links", [True, False])
def test_of_many_claims_one_holds(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(n) if claim_json(tmp_path / "a.json", {"n": n}) else None)
        for n in range(8 if links else 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_json(tmp_path / "a.json")["n"]] == won
    assert not claim_json(tmp_path / "a.json", {"n": 9})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_thousand_files_cost_one_listing_of_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings = 0
    listdir = os.listdir

    def counted(path: Any = ".") -> list[str]:
        nonlocal listings
        listings += 1
        return listdir(path)

    monkeypatch.setattr(os, "listdir", counted)
    for n in range(30):
        write_json(tmp_path / f"{n}.json", {})
    assert listings == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        before = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, name=name, before=before: (calls.append(name), before(*words))[1])
    write_json(tmp_path / "a.json", {})
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a"), "Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "File name too long"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "bytes that are no UTF-8 text, from byte 0 on",
        ),
        (json.JSONDecodeError("Expecting value", "x", 0), "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_reasons_are_words(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_a_disk_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_flock", refuse)
    with locked(tmp_path / "out"):
        write_json(tmp_path / "out" / "a.json", {})
    assert (tmp_path / "out" / "a.json").exists()


def test_a_module_that_links_to_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").symlink_to("net.py")
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\n")
    sentence = medattack("attack", "-c", "study.yaml", "--home", "home", code=2).stderr
    assert "defect" not in sentence
