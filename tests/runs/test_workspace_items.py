"""The workspace is listed with what is finished, and `rm` removes what it showed, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import medattack
from helpers.runs import dice_of, write_run

from medseg_attack.storage.locks import locked


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with scans, a data set, a model and a run, each by its command."""
    root = tmp_path_factory.mktemp("workspace")
    phantom = "phantom(patients=6, slices=2, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "home/data/phantom")
    words = ["--data", root / "home/data/phantom", "--home", root / "home", "--model", "unet_small"]
    medattack("train", *words, "--epochs", 1)
    medattack("attack", *words, "--attack", "fgsm", "--eps", "0.01", "--no-checks", "--out", root / "home/runs/first")
    return root


@pytest.fixture
def home(workspace: Path, tmp_path: Path) -> Path:
    """A copy of it, whose study names the copies."""
    subprocess.run(["cp", "-a", str(workspace / "home"), str(tmp_path / "home")], check=True)
    for file in (tmp_path / "home").rglob("study.yaml"):
        file.write_text(file.read_text().replace(str(workspace / "home"), str(tmp_path / "home")))
    return tmp_path / "home"


def listed(home: Path, what: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(medattack("ls", what, "--home", home, "--json").stdout)
    return rows


def test_everything_is_listed_with_date_size_and_state(home: Path) -> None:
    for what, content in (("data", "10 scans"), ("trained", "unet_small"), ("runs", "2 of 2 runs")):
        (row,) = listed(home, what)
        assert row["finished"] is True
        assert row["content"] == content
        assert int(str(row["bytes"])) == sum(f.stat().st_size for f in Path(str(row["path"])).rglob("*") if f.is_file())
        assert "yes" in medattack("ls", what, "--home", home).stdout


def test_what_is_not_finished_says_so(home: Path) -> None:
    next((home / "runs").rglob("run.json")).unlink()
    (home / "data" / "phantom" / "dataset.json").unlink()
    next((home / "models").rglob("card.json")).unlink()
    assert listed(home, "runs")[0]["content"] == "1 of 2 runs"
    assert [listed(home, what)[0]["finished"] for what in ("runs", "data", "trained")] == [False] * 3


def test_an_empty_workspace_lists_nothing(tmp_path: Path) -> None:
    for what in ("runs", "data", "trained", "baselines"):
        assert listed(tmp_path, what) == []
        assert "nothing in" in medattack("ls", what, "--home", tmp_path).stderr


def test_what_no_command_made_is_not_listed_and_not_removed(home: Path) -> None:
    (home / "runs" / "notes").mkdir()
    (home / "runs" / "notes" / "text.txt").write_text("mine")
    assert [row["name"] for row in listed(home, "runs")] == ["first"]
    message = medattack("rm", "notes", "--yes", "--home", home, code=2).stderr
    assert "got 'notes'" in " ".join(message.split())
    assert (home / "runs" / "notes" / "text.txt").exists()


def test_what_goes_is_shown_and_only_that_goes(home: Path) -> None:
    before = set(home.rglob("*"))
    result = medattack("rm", "first", "--yes", "--home", home)
    assert "runs/first" in result.stderr
    assert "2 of 2 runs" in result.stderr
    assert {path for path in before if path.exists()} == {
        p for p in before if home / "runs" / "first" not in (p, *p.parents)
    }


def test_without_yes_and_without_a_terminal_nothing_goes(home: Path) -> None:
    assert "expected --yes" in medattack("rm", "first", "--home", home, code=2).stderr
    assert listed(home, "runs")


def test_results_that_came_from_it_are_named(home: Path) -> None:
    result = medattack("rm", "data/phantom", "--yes", "--home", home)
    assert "data/phantom is what runs/first came from" in " ".join(result.stderr.split())


def test_a_name_of_two_kinds_is_asked_for(home: Path) -> None:
    os.rename(home / "runs" / "first", home / "runs" / "phantom")
    sentence = " ".join(medattack("rm", "phantom", "--yes", "--home", home, code=2).stderr.split())
    assert "data/phantom and runs/phantom; write one of these" in sentence
    medattack("rm", "runs/phantom", "--yes", "--home", home)
    assert (home / "data" / "phantom").exists()


@pytest.mark.parametrize("name", ["..", "../scans", "runs", "/", "."])
def test_nothing_outside_is_removed(home: Path, name: str) -> None:
    assert "expected a data set, model or run" in medattack("rm", name, "--yes", "--home", home, code=2).stderr


def test_of_a_link_the_link_alone_goes(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    os.rename(home / "data" / "phantom", target)
    (home / "data" / "phantom").symlink_to(target)
    medattack("rm", "data/phantom", "--yes", "--home", home)
    assert (target / "dataset.json").exists()
    assert not (home / "data" / "phantom").is_symlink()


def test_what_another_process_writes_to_stays(home: Path) -> None:
    code = "import sys; from pathlib import Path; from medseg_attack.storage.locks import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home / "runs" / "first")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        result = medattack("rm", "first", "--yes", "--home", home, code=2)
        process.communicate()
    assert "got a process that does" in " ".join(result.stderr.split())
    assert listed(home, "runs")[0]["finished"] is True


def test_certificates_and_baselines_go_by_their_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", dice_of(0, 4))
    medattack("compare", run, "--save-as", "main", "--home", tmp_path / "home")
    medattack("rm", "baselines/main", "--yes", "--home", tmp_path / "home")
    assert listed(tmp_path / "home", "baselines") == []


def test_a_lock_that_a_killed_process_left_is_no_obstacle(home: Path) -> None:
    with locked(home / "runs" / "first"):
        pass
    (home / "runs" / "first" / ".lock").touch()
    medattack("rm", "first", "--yes", "--home", home)
