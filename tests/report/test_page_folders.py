"""No page, card, entry, board or figure names the folders of the machine; names stay told apart."""

import re
from pathlib import Path

import pytest
from helpers.attacked import write_attacked
from helpers.command import medattack
from helpers.pages import read_html
from helpers.runs import dice_of, write_run

from medseg_attack.escaping import without_absolute_paths, without_folders, without_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in a folder named after a person, with spaces, beside runs of networks in other such folders."""
    root = tmp_path_factory.mktemp("machine") / "jane doe"
    write_attacked(root)
    for n, folder in enumerate(("/home/jane doe/a", "/home/jane doe/b", "C:\\jane\\c")):
        model = f"own({folder + '/net.py:build'!r}, weights={'/mnt/jane/w/net.pth'!r})"
        attack = f"transfer(surrogate={folder + '/unet'!r}, attack=pgd(steps=5))"
        flag = {"code": "MA029", "verdict": "note", "title": "x", "about": model, "seen": "read /home/jane/x.npy, once"}
        facts = {"attack": attack, "loss": f"toward(bce, stored({folder!r}))", "flags": [flag | {"todo": "more"}]}
        write_run(root / "runs", dice_of(n, 3), model=model, weights=chr(97 + n), **facts)
    return root


def test_nothing_that_is_written_names_a_folder_above_a_file(root: Path, tmp_path: Path) -> None:
    words = (root / "runs", "--home", root / "home", "--out", tmp_path)
    medattack("report", *words)  # the network is not trusted: the page says so, and names its file
    medattack("report", *words, "--card", "--entry")
    medattack("leaderboard", tmp_path, "--out", tmp_path / "board")
    for kind in ("curves", "profile", "heatmap", "transfer", "tradeoff"):
        medattack("figure", kind, root / "runs", "--out", tmp_path / f"{kind}.svg")
    medattack("figure", "table", root / "runs", "--out", tmp_path / "table.tex")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 12
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert re.findall(r".{60}(?:jane|/mnt|/home).{60}", text) == [], file.name
        assert "jane" not in text + file.name
        assert str(tmp_path.parent) not in text


def test_two_networks_whose_files_have_one_name_stay_two(root: Path, tmp_path: Path) -> None:
    medattack("report", root / "runs", "--home", root / "home", "--out", tmp_path, "--worst", 0)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    models = re.findall(r"<option[^>]*>(own\(.*?)</option>", text.split('id="model"')[1].split("</select>")[0])
    assert len(set(models)) == len(models) == 4


@pytest.mark.parametrize("name", ["a\"b'c", "it's a/b's", "</title>", "../../up", "\\input{x}", "a | b/c", "4/255"])
def test_a_name_that_is_no_path_stays_as_it_is(name: str) -> None:
    assert without_folders(name) == without_root(name) == without_absolute_paths(name) == name


def test_a_study_in_the_workspace_is_named_from_there(tmp_path: Path) -> None:
    home = tmp_path / "jane" / "medattack_runs"
    write_run(home / "runs" / "toy-1a2b", dice_of(0, 3))
    medattack("report", home / "runs" / "toy-1a2b", "--home", home, "--out", tmp_path / "out")
    text = read_html(tmp_path / "out" / "index.html")
    assert "<h3>medattack_runs/runs/toy-1a2b</h3>" in text
    assert "medattack compare medattack_runs/runs/toy-1a2b --json" in text
