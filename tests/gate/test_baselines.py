"""Baselines: saved under a name, compared with by that name, kept as a history, never half there."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers.command import medattack
from helpers.runs import dice_of, worse, write_run

from medseg_attack.errors import InputError
from medseg_attack.gate.baselines import SCORES, history, reference_folder, save_baseline

DICE = dice_of(0, 8)
RULE = "dice_drop>0.02"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDATTACK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_later_run_is_compared_with_the_newest_baseline_of_a_name(tmp_path: Path, home: Path) -> None:
    old, new = write_run(tmp_path / "old", DICE), write_run(tmp_path / "new", worse(DICE, 0.05), weights="b")
    assert "saved as baseline main, number 1" in medattack("compare", old, "--save-as", "main").stderr
    by_path = medattack("compare", new, "--reference", old, "--fail-if", RULE, "--json", code=1)
    by_name = medattack("compare", new, "--reference", "main", "--fail-if", RULE, "--json", code=1)
    assert json.loads(by_name.stdout)["changes"][0]["mean"] == json.loads(by_path.stdout)["changes"][0]["mean"]
    medattack("compare", new, "--save-as", "main")
    medattack("compare", new, "--reference", "main", "--fail-if", RULE)
    assert [baseline.number for baseline in history(home, "main")] == [1, 2]


def test_a_gate_that_fails_leaves_the_baseline_as_it_was(tmp_path: Path, home: Path) -> None:
    old, new = write_run(tmp_path / "old", DICE), write_run(tmp_path / "new", worse(DICE, 0.05), weights="b")
    medattack("compare", old, "--save-as", "main")
    words = ["compare", new, "--reference", "main", "--fail-if", RULE, "--save-as", "main"]
    assert "the baseline main stays as it was" in medattack(*words, code=1).stderr
    assert len(history(home, "main")) == 1


def test_a_baseline_holds_rows_and_headers_alone(tmp_path: Path, home: Path) -> None:
    run = write_run(tmp_path / "old", DICE)
    (run / "images").mkdir()
    (run / "images" / "00000.safetensors").write_bytes(b"scan")
    (run / "adversarial").mkdir()
    (run / "adversarial" / "p00.nii.gz").write_bytes(b"scan")
    medattack("compare", run, "--save-as", "main")
    files = {file.name for file in history(home)[0].folder.rglob("*") if file.is_file()}
    assert files == {"baseline.json", "config.json", "run.json", "00000.parquet"}


def test_runs_of_two_studies_with_the_same_folders_stay_apart(tmp_path: Path, home: Path) -> None:
    one, two = write_run(tmp_path / "one", DICE), write_run(tmp_path / "two", DICE, config={"seed": 1})
    medattack("compare", one, two, "--save-as", "main")
    medattack("compare", one, two, "--reference", "main")


def test_what_a_killed_process_left_is_no_baseline(tmp_path: Path, home: Path) -> None:
    run = write_run(tmp_path / "old", DICE)
    (home / "baselines" / "main" / "0001" / "00").mkdir(parents=True)
    assert history(home) == []
    medattack("compare", run, "--save-as", "main")
    assert [baseline.number for baseline in history(home)] == [1]


def test_the_history_is_listed(tmp_path: Path, home: Path) -> None:
    medattack("compare", write_run(tmp_path / "old", DICE, eps=4 / 255), "--save-as", "main")
    medattack("compare", write_run(tmp_path / "new", worse(DICE, 0.05), weights="b", eps=4 / 255), "--save-as", "main")
    rows = json.loads(medattack("ls", "baselines", "--json").stdout)
    assert [(row["name"], row["number"], row["model"]) for row in rows] == [("main", 1, "unet"), ("main", 2, "unet")]
    assert rows[0]["mean_adv"] > rows[1]["mean_adv"]
    text = medattack("ls", "baselines").stdout
    assert text.count("main") == 2
    assert f"{rows[1]['mean_adv']:.3f}" in text
    date = rows[0]["saved"]
    assert f" {date[:10]} {date[11:16]} " in text
    assert " 4/255 " in text


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "\x1b[31m"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, home: Path, name: str) -> None:
    run = write_run(tmp_path / "old", DICE)
    result = medattack("compare", run, "--save-as", name, code=2)
    assert "expected a name of letters, digits" in result.stderr
    assert not home.exists()


def test_a_misspelt_baseline_names_the_nearest(tmp_path: Path, home: Path) -> None:
    run = write_run(tmp_path / "old", DICE)
    medattack("compare", run, "--save-as", "main")
    result = medattack("compare", run, "--reference", "mian", code=2)
    assert "did you mean main?" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("by", "code", "verdict"), [(0.05, 1, "gate fails"), (0.0, 0, "gate passes")])
def test_a_badge_shows_the_worst_attack_and_the_verdict(
    tmp_path: Path, home: Path, by: float, code: int, verdict: str
) -> None:
    old, new = write_run(tmp_path / "old", DICE), write_run(tmp_path / "new", worse(DICE, by), weights="b")
    file = tmp_path / "badge.svg"
    words = ["compare", new, "--reference", old, "--fail-if", RULE, "--badge", file]
    medattack(*words, code=code)
    medattack(*words, code=code)  # over its own
    texts = [element.text for element in ElementTree.parse(file).getroot().iter() if element.tag.endswith("text")]
    assert texts[0] == "adversarial Dice"
    assert verdict in str(texts[1])
    assert f"{worse(DICE, by).mean():.3f}" in str(texts[1])
    file.write_text("<svg>mine</svg>")
    assert "name another file" in " ".join(medattack(*words, code=2).stderr.split())


@pytest.mark.parametrize("name", ["-x", "--json", ".hidden", "a/b", ""])
def test_a_name_that_would_be_an_option_or_hidden_is_refused(tmp_path: Path, home: Path, name: str) -> None:
    run = write_run(tmp_path / "old", DICE)
    message = " ".join(medattack("compare", run, f"--save-as={name}", code=2).stderr.split())
    assert "expected a name of letters, digits" in message
    assert not home.exists()


@pytest.mark.parametrize("place", ["baselines", "baselines/main", "baselines/main/0001"])
def test_a_baseline_is_not_written_through_a_link_out_of_the_workspace(tmp_path: Path, home: Path, place: str) -> None:
    run, outside = write_run(tmp_path / "old", DICE), tmp_path / "outside"
    outside.mkdir()
    (home / place).parent.mkdir(parents=True)
    (home / place).symlink_to(outside)
    assert "leads out of it" in " ".join(medattack("compare", run, "--save-as", "main", code=2).stderr.split())
    assert list(outside.iterdir()) == []


RUN = dict.fromkeys(SCORES, 0.5) | {"model": "unet", "attack": "fgsm", "ball": "linf(eps=0.5)"}
TABLE = pd.DataFrame([RUN | {"loss": np.nan}])
RULES = {"unit": "volume", "empty": "one"}


def test_the_fields_of_a_run_are_as_they_were_printed_and_nothing_stands_for_no_number(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", DICE)
    saved = save_baseline(tmp_path / "home", "main", [run], TABLE.assign(more=1), "2026-01-01", RULES)
    assert saved.runs == [RUN | {"loss": None}]
    assert (saved.name, saved.number, saved.saved, saved.folder.name) == ("main", 1, "2026-01-01", "0001")


def test_the_next_number_is_one_above_the_highest(tmp_path: Path) -> None:
    run, home = write_run(tmp_path / "old", DICE), tmp_path / "home"
    for number in (1, 2, 3):
        assert save_baseline(home, "main", [run], TABLE, "2026-01-01", RULES).number == number
    assert save_baseline(home, "other", [run], TABLE, "2026-01-01", RULES).number == 1
    shutil.rmtree(home / "baselines" / "main" / "0001")
    assert save_baseline(home, "main", [run], TABLE, "2026-01-01", RULES).number == 4
    assert [saved.number for saved in history(home, "main")] == [2, 3, 4]


def test_what_a_killed_process_left_is_in_no_later_baseline(tmp_path: Path) -> None:
    run, home = write_run(tmp_path / "old", DICE), tmp_path / "home"
    rest = home / "baselines" / "main" / "0001" / "07" / "unet" / "rest.json"
    rest.parent.mkdir(parents=True)
    rest.write_text("{}")
    saved = save_baseline(home, "main", [run], TABLE, "2026-01-01", RULES)
    assert not rest.exists()
    assert [folder.name for folder in sorted(saved.folder.iterdir()) if folder.is_dir()] == ["00"]


def test_the_flags_of_a_study_are_saved_with_its_runs(tmp_path: Path) -> None:
    run, home = write_run(tmp_path / "old", DICE), tmp_path / "home"
    (run.parent / "checks.json").write_text('{"flags": []}')
    saved = save_baseline(home, "main", [run, run], TABLE, "2026-01-01", RULES)
    target = saved.folder / "00" / run.parent.name
    assert (target / "checks.json").read_text() == '{"flags": []}'
    assert (target / run.name / "parts" / "00000.parquet").is_file()


def test_runs_of_two_studies_have_folders_of_their_own(tmp_path: Path) -> None:
    one, two, three = (write_run(tmp_path / name, DICE) for name in ("a", "b", "c"))
    saved = save_baseline(tmp_path / "home", "main", [two, three, one, two], TABLE, "2026-01-01", RULES)
    assert sorted(folder.name for folder in saved.folder.iterdir() if folder.is_dir()) == ["00", "01", "02"]


def test_a_reference_is_a_path_that_exists_or_has_parts_or_else_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = write_run(tmp_path / "old", DICE), tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    save_baseline(home, "old", [run], TABLE, "2026-01-01", RULES)
    newest = save_baseline(home, "main", [run], TABLE, "2026-01-01", RULES)
    assert reference_folder(home, Path("old")) == Path("old")  # the folder, not the baseline of that name
    assert reference_folder(home, Path("no/folder")) == Path("no/folder")
    assert reference_folder(home, Path("main")) == newest.folder
    with pytest.raises(InputError, match=r"or the name of a baseline.*--save-as nothing without --reference saves"):
        reference_folder(home, Path("nothing"))
