"""Files and folders: what leaves a folder is refused, of two writers one waits, and a killed one holds nothing."""

import errno
import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from hypothesis import given
from hypothesis import strategies as st

from medseg_attack.errors import InputError, reason
from medseg_attack.storage.files import require_own
from medseg_attack.storage.json_files import claim_json, differences, read_json, require_same_options, write_json
from medseg_attack.storage.paths import inside, is_below
from medseg_attack.storage.yaml_files import read_yaml

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


MARK = re.compile(rb"\Arun,")


@pytest.mark.parametrize("content", [b"", b"run,model\n", b"run,"])
def test_own_files_and_empty_ones_are_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    require_own(tmp_path / "a.csv", MARK)
    require_own(tmp_path / "absent.csv", MARK)


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,run,class\n")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("train.csv")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/null"), *tmp_path.iterdir()):
        with pytest.raises(InputError, match="expected a new file to write to, or one that medattack wrote"):
            require_own(path, MARK)


def test_a_module_that_links_to_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").symlink_to("net.py")
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\n")
    sentence = medattack("attack", "-c", "study.yaml", "--home", "home", code=2).stderr
    assert "defect" not in sentence


def test_a_study_may_come_from_a_pipe_that_somebody_writes_to(tmp_path: Path) -> None:
    pipe = tmp_path / "study.yaml"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="got 'a pipe that nobody writes to'"):
        read_yaml(pipe, may_be_pipe=True)
    source, target = os.pipe()
    with subprocess.Popen(["/bin/sh", "-c", "sleep 0.1; echo 'models: [unet]'"], stdout=target):
        os.close(target)
        assert read_yaml(Path(f"/dev/fd/{source}"), may_be_pipe=True) == {"models": ["unet"]}
    os.close(source)


VALUES = (False, 0, 1, "", "a", "0" * 64, [], ["a"], ["a", "b"], ["b", "a"], [1, 2], {}, {"x": 1}, {"x": {"y": 2}})


@pytest.mark.parametrize("old", VALUES)
def test_the_differences_of_two_records_are_the_fields_that_differ(old: Any) -> None:
    for new in VALUES:
        texts = differences({"same": 1, "field": old}, {"same": 1, "field": new})
        assert {text.partition(":")[0].partition(".")[0] for text in texts} == ({"field"} if old != new else set())
    assert len(differences({}, {"field": old})) == 1


def test_a_sentence_on_other_options_holds_what_differs_alone() -> None:
    same = {"data": "0" * 64, "spec": "stamp(goal=erase(organ='stomach'))", "patients": ["a", "b"]}
    there = {**same, "poison": {"rho": 0.1, "spec": "stamp", "decoys": []}, "weights": ["1" * 64]}
    here = {**same, "poison": {"rho": 0.2, "spec": "stamp", "decoys": []}, "weights": ["2" * 64], "seed": 3}
    with pytest.raises(InputError) as refused:
        require_same_options(Path("out"), there, here)
    assert str(refused.value) == (
        "expected the options and inputs that out was begun with, got others (poison.rho: there 0.1, here 0.2; "
        "seed: there none, here 3; weights: only there 111111111111, only here 222222222222); "
        "give another --out, or those of the folder to go on"
    )
