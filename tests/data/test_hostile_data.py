"""Prepared data that names files elsewhere: nothing is written or deleted outside of the folders that were named."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import medattack
from helpers.dicoms import tiny_model
from helpers.sources import LABELS, SPECS, WRITERS, opened, write_pictures

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.writing import prepare
from medseg_attack.errors import InputError
from medseg_attack.runs.claim import claim

FORMATS = ["folder", "acdc", "dicom"]  # of pictures, NIfTI and DICOM: every kind of copy


@pytest.fixture(scope="module", params=FORMATS)
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, prepared, and a model."""
    root = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](root / "source")
    words = ["--labels", LABELS[request.param]] if request.param in LABELS else []
    medattack("prepare", root / "source", "--format", SPECS[request.param], "--out", root / "data", *words)
    tiny_model(root / "model", open_prepared(root / "data"))
    return root


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def record(data: Path) -> Path:
    return min((data / "scans").glob("*.json"))


def with_path(path: str) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        fields["sources"][0]["path"] = path
        if fields["frames"]:
            fields["frames"][0][0] = path

    return change


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "up": with_path("../victim/a.png"),
    "absolute": with_path("/tmp/victim.png"),
    "up and down": with_path("images/../../victim/a.nii.gz"),
    "id": lambda fields: fields.update(id="../../victim/a"),
    "case": lambda fields: fields["case_ids"].__setitem__(0, "../../victim/a"),
    "case with a slash": lambda fields: fields["case_ids"].__setitem__(0, "/tmp/a"),
}


def attack(root: Path, data: Path, out: Path, code: int) -> str:
    result = medattack(
        "attack",
        "--data",
        data,
        "-m",
        root / "model",
        "--attack",
        "fgsm",
        "--eps",
        "4/255",
        "--split",
        "all",
        "--no-control",
        "--no-checks",
        "--save-adversarial",
        "all",
        "--out",
        out,
        code=code,
    )
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("change", CHANGES)
def test_paths_and_ids_that_lead_out_are_refused_and_nothing_is_written(
    workspace: Path, tmp_path: Path, change: str
) -> None:
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "a.png").write_bytes(b"theirs")
    fields = json.loads(record(data).read_text())
    CHANGES[change](fields)
    record(data).write_text(json.dumps(fields))
    before = tree(tmp_path)
    message = attack(workspace, data, tmp_path / "out", 2)
    assert str(record(data)) in message
    assert tree(tmp_path) == before


def test_copies_are_not_written_through_a_link(workspace: Path, tmp_path: Path) -> None:
    attack(workspace, workspace / "data", tmp_path / "out", 0)
    run = next((tmp_path / "out").rglob("run.json")).parent
    copy = next(path for path in sorted((run / "adversarial").rglob("*")) if path.parent.parent == run / "adversarial")
    shutil.rmtree(run / "adversarial")
    (tmp_path / "victim").mkdir()
    (run / "adversarial").mkdir()
    (run / "adversarial" / copy.parent.name).symlink_to(tmp_path / "victim")
    message = attack(workspace, workspace / "data", tmp_path / "out", 2)
    assert "leads out of it" in message
    assert list((tmp_path / "victim").iterdir()) == []


def test_scans_whose_ids_lead_out_are_refused(workspace: Path, tmp_path: Path) -> None:
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    content = json.loads((data / "dataset.json").read_text())
    content["scans"][0] = "../../victim"
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no name of a file"):
        open_prepared(data)


def test_a_data_set_named_by_a_path_has_its_results_in_the_workspace(workspace: Path, tmp_path: Path) -> None:
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    content = json.loads((data / "dataset.json").read_text())
    content["task"]["name"] = "../../../victim"
    (data / "dataset.json").write_text(json.dumps(content))
    words = "--data", data, "-m", workspace / "model", "--no-checks", "--no-control", "--home", tmp_path / "home"
    medattack("attack", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "home"}


@pytest.mark.parametrize("folder", ["images", "labels", "scans"])
def test_prepare_does_not_write_through_a_link(tmp_path: Path, folder: str) -> None:
    source = opened("folder", write_pictures(tmp_path / "source"))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "p0.npy").write_bytes(b"theirs")
    list(prepare(source, tmp_path / "data"))
    shutil.rmtree(tmp_path / "data" / folder)
    (tmp_path / "data" / folder).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="leads out of it"):
        list(prepare(source, tmp_path / "data"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "victim").iterdir()} == {"p0.npy": b"theirs"}


def spoil(root: Path) -> None:
    np.save(root / "images" / "x.npy", np.zeros(3))
    path = sorted((root / "images").glob("*.png"))[-1]
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("kind", ["absent", "empty", "with a part", "link", "link to an empty folder"])
def test_after_a_failed_prepare_all_that_was_there_is_there(tmp_path: Path, kind: str) -> None:
    root = write_pictures(tmp_path / "source")
    source = opened("folder", root)
    spoil(root)  # after the folder was listed, so that it is the writing which fails
    out = tmp_path / "out"
    if kind == "with a part":
        out.mkdir()
        (out / ".options.json.0a1b2c3d.part").write_text("what a killed prepare leaves")
    elif kind == "empty":
        out.mkdir()
    elif kind.startswith("link"):
        (tmp_path / "real").mkdir()
        out.symlink_to(tmp_path / "real")
    before = tree(tmp_path)
    with pytest.raises(InputError):
        list(prepare(source, out))
    assert {name: content for name, content in tree(tmp_path).items() if not name.endswith("d.part")} == {
        name: content for name, content in before.items() if not name.endswith("d.part")
    }


@pytest.mark.parametrize("name", ["thesis.part", ".thesis.part", ".lockfile", "a/b.txt", ".thesis.docx.0a1b2c3d.part"])
def test_a_users_files_are_neither_taken_for_ours_nor_deleted(tmp_path: Path, name: str) -> None:
    root = write_pictures(tmp_path / "source")
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("a thesis")
    for command in (
        ("prepare", root, "--format", "folder"),
        ("train", "--model", "unet_small(channels=(4, 8))", "--epochs", 1, "--data", tmp_path / "data"),
        ("attack", "--data", tmp_path / "data", "-m", tmp_path / "model"),
    ):
        if command[0] == "train":
            medattack("prepare", root, "--format", "folder", "--out", tmp_path / "data")
        if command[0] == "attack":
            tiny_model(tmp_path / "model", open_prepared(tmp_path / "data"))
        message = medattack(*command, "--out", tmp_path / "out", code=2).stderr
        assert str(tmp_path / "out") in message.replace("\n", "")
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "a thesis"


def test_files_of_a_user_beside_prepared_arrays_stay(tmp_path: Path) -> None:
    source = opened("folder", write_pictures(tmp_path / "source"))
    list(prepare(source, tmp_path / "data"))
    note, stale = tmp_path / "data" / "images" / "notes.txt", tmp_path / "data" / "images" / "gone.npy"
    note.write_text("mine")
    stale.write_bytes(b"of a scan that is no longer in the source")
    list(prepare(source, tmp_path / "data"))
    assert note.exists()
    assert not stale.exists()


SMALL = "unet_small(channels=(4, 8))"


@pytest.mark.parametrize(
    "words",
    [
        ("attack", "-m", "MODEL"),
        ("defend", "voted('MODEL')"),
        ("train", "--model", SMALL),
        ("train", "--denoiser"),
        ("extract", "--victim", "MODEL", "--model", SMALL, "--queries", "4", "--answers", "masks"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_nothing_is_written_into_what_is_read(workspace: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(workspace / "source")
    before = tree(workspace)
    filled = [word.replace("MODEL", str(workspace / "model")) for word in words]
    outs = [workspace / name for name in ("source/out", "data", "data/out")]
    for out in (*outs, tmp_path / "link" / "out"):
        assert "outside of" in medattack(*filled, "--data", workspace / "data", "--out", out, code=2).stderr
    assert tree(workspace) == before


def test_of_two_processes_that_make_a_phantom_both_have_it_and_nothing_beside_it_is_touched(tmp_path: Path) -> None:
    (tmp_path / ".scans.part").mkdir()
    (tmp_path / ".scans.part" / "thesis.txt").write_text("theirs")
    phantom = registry.build("phantom(patients=4, slices=2, side=16)", "dataset")
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(len(phantom.listing(tmp_path / "scans").scans)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scans.part", "scans"]
    assert (tmp_path / ".scans.part" / "thesis.txt").exists()


def test_the_part_of_a_process_that_is_about_to_lock_it_stays(tmp_path: Path) -> None:
    beginning, killed = tmp_path / ".scans.0a1b2c3d.part", tmp_path / ".scans.4e5f6a7b.part"
    for part in (beginning, killed):
        part.mkdir()
        (part / ".lock").touch()
    (killed / "train.csv").touch()
    registry.build("phantom(patients=3, slices=1, side=16)", "dataset").listing(tmp_path / "scans")
    assert beginning.exists()
    assert not killed.exists()


@pytest.mark.parametrize("left", [[], [".lock"], [".identity.json.0a1b2c3d.part"], ["study.yaml"]])
def test_what_a_kill_leaves_of_a_beginning_is_begun_again(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("eps: 1\n")
    assert claim(tmp_path, {"eps": 1}, "eps: 1\n")
    assert not claim(tmp_path, {"eps": 1}, "eps: 1\n")
    with pytest.raises(InputError, match="eps"):
        claim(tmp_path, {"eps": 2}, "eps: 2\n")
    assert (tmp_path / "study.yaml").read_text() == "eps: 1\n"


def test_a_study_of_the_users_own_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("models: [unet]\n")
    with pytest.raises(InputError, match="a folder of other things"):
        claim(tmp_path, {"eps": 1}, "eps: 1\n")
    assert (tmp_path / "study.yaml").read_text() == "models: [unet]\n"
