"""Folders that are none: --out and --home are looked at before any work, whatever the command."""

import inspect
from pathlib import Path

import pytest
from helpers.command import medattack

from medseg_attack.cli import app

COMMANDS = {info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
REQUIRED = {
    "poison": ["DATA", "relabel(shrink(1))"],
    "train": ["--model", "unet_small"],
    "prepare": ["SOURCE", "--format", "phantom"],
    "attack": ["--model", "unet_small"],
    "defend": ["unet_small"],
    "extract": ["--victim", "unet_small", "--out", "copy"],
    "evaluate": ["--model", "unet_small"],
    "certify": ["--model", "unet_small"],
    "detect": ["RUNS"],
    "report": ["RUNS"],
    "leaderboard": ["ENTRIES"],
    "readers": ["RUN"],
    "audit": ["DATA", "--model", "unet_small"],
    "screen": ["SCANS", "--detector", "D", "--model", "unet_small"],
    "compare": ["RUNS"],
    "verify": ["RUNS"],
    "figure": ["curves", "RUNS", "--out", "a.pdf"],
    "rm": ["data/a"],
    "ls": ["runs"],
    "doctor": [],
    "demo": [],
}


def with_option(name: str) -> list[str]:
    return sorted(command for command, body in COMMANDS.items() if name in inspect.signature(body).parameters)


@pytest.mark.parametrize("command", with_option("out"))
@pytest.mark.parametrize("place", ["a file", "below a file", "a link to nothing"])
def test_an_out_that_can_be_no_folder_is_refused_before_any_work(command: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.symlink_to("nowhere") if place == "a link to nothing" else file.write_text("mine")
    out = file / "deep" / "er" if place == "below a file" else file
    words = REQUIRED[command]
    message = " ".join(medattack(command, *words, "--out", out, code=2).stderr.split())
    got = "a link that leads nowhere (No such file or directory)" if place == "a link to nothing" else "the file"
    assert message == f"error: --out: expected a folder, got {got} {file}; name another"
    assert place == "a link to nothing" or file.read_text() == "mine"


@pytest.mark.parametrize("command", with_option("home"))
def test_a_home_that_is_a_file_is_refused_by_name(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    message = " ".join(medattack(command, *REQUIRED[command], "--home", file, code=2).stderr.split())
    assert message == f"error: --home: expected a folder, got the file {file}; name another"


WRITTEN = ("home", "out", "file", "csv", "html", "plot", "junit", "badge")
INTO = [(command, option) for option in WRITTEN for command in with_option(option)]


@pytest.mark.parametrize(("command", "option"), INTO)
def test_nothing_is_written_among_the_files_of_a_prepared_data_set(command: str, option: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "scans").mkdir(parents=True)
    for name in ("dataset.json", "options.json"):
        (data / name).write_text("{}")
    (tmp_path / "link").symlink_to(data)
    for path in (data, data / "scans" / "new", tmp_path / "link" / "a.csv"):
        if option == "out" and command in ("prepare", "poison") and path == data:
            continue  # which may go on there
        required = [] if command == "new" else REQUIRED[command]
        words = (
            ["study", path] if command == "new" else [*required, "--out" if option == "file" else f"--{option}", path]
        )
        message = " ".join(medattack(command, *words, code=2).stderr.split())
        sentence = f"expected a path outside of the prepared data set {data.resolve()} to write to, got {path}"
        assert message == f"error: {sentence}; name another"
    assert sorted(file.name for file in data.rglob("*")) == ["dataset.json", "options.json", "scans"]


def test_data_of_others_are_no_prepared_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")  # as of nnU-Net
    medattack("new", "study", tmp_path / "study.yaml")
    assert (tmp_path / "study.yaml").is_file()
