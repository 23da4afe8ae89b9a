"""A study with readers: pictures that tell nothing, a key apart from them, answers that are checked, and the page."""

import csv
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.attacked import write_attacked
from helpers.command import medattack
from PIL import Image

from medseg_attack.errors import InputError
from medseg_attack.evaluation.pictures.reader_trials import CATCH, Trial
from medseg_attack.report.readers.writing import write_study

N = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("attacked")
    return next(write_attacked(root).glob("*/*fgsm*40of255"))


@pytest.fixture(scope="module")
def study(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "study"
    medattack("readers", run, "--out", folder, "--trials", N, "--trust", "--home", folder.parent / "home")
    return folder


@pytest.fixture
def key(study: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((study / "key.json").read_text())
    return result


def picture(study: Path, trial: int, side: str) -> np.ndarray:
    with Image.open(study / "for_readers" / f"{trial:04d}_{side}.png") as opened:
        return np.asarray(opened, int)


def write(file: Path, key: dict[str, Any], reader: str = "a", **changes: str) -> Path:
    """Right answers to all trials; `changes` are other ones by the number of the trial, as in t3="maybe"."""
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["study", "reader", "trial", "answer", "seconds"])
        for trial in key["trials"]:
            number = trial["trial"]
            if (answer := changes.get(f"t{number}", trial["altered"])) != "none":
                rows.writerow([key["study"], reader, number, answer, "1.00"])
    return file


def test_a_study_has_the_kinds_of_pairs_that_it_says(key: dict[str, Any]) -> None:
    assert Counter(trial["kind"] for trial in key["trials"]) == {"attack": N - 2, "catch": 1, "noise": 1}
    assert {trial["altered"] for trial in key["trials"]} == {"left", "right"}


def test_the_altered_picture_is_changed_as_its_kind_says(study: Path, key: dict[str, Any]) -> None:
    """A step of 40/255 in a window of 8 bits; a catch has 8 times that, as far as black and white allow."""
    for trial in key["trials"]:
        left, right = (picture(study, trial["trial"], side) for side in ("left", "right"))
        altered, untouched = (left, right) if trial["altered"] == "left" else (right, left)
        change = np.abs(altered - untouched)
        assert change.max() > 0
        assert change.max() <= (40 * CATCH if trial["kind"] == "catch" else 41)


def test_names_lengths_and_dates_of_pictures_tell_nothing(study: Path) -> None:
    files = sorted((study / "for_readers").glob("*.png"))
    assert [file.name for file in files] == [
        f"{n:04d}_{side}.png" for n in range(1, N + 1) for side in ("left", "right")
    ]
    assert len({file.stat().st_size for file in files}) == 1
    for file in files:
        with Image.open(file) as opened:
            assert not opened.info


def test_neither_the_folder_of_the_readers_nor_the_key_holds_a_name(study: Path, run: Path) -> None:
    rows = json.loads((run / "config.json").read_text())
    text = (study / "key.json").read_text() + (study / "for_readers" / "index.html").read_text()
    from medseg_attack.runs.folder import RunFolder

    table = RunFolder(run).rows()
    for name in {*table["case"], *table["volume"], *table["group"], str(rows["weights"]), str(run)}:
        assert name not in text
    assert not list((study / "for_readers").glob("*key*"))
    page = (study / "for_readers" / "index.html").read_text()
    assert all(word not in page for word in ('altered":', 'sha256":', "catch", "seed"))


def test_a_slice_stands_in_one_pair_only(study: Path, key: dict[str, Any]) -> None:
    untouched = []
    for trial in key["trials"]:
        side = "right" if trial["altered"] == "left" else "left"
        untouched.append(picture(study, trial["trial"], side).tobytes())
    assert len(set(untouched)) == N


def test_the_same_seed_gives_the_same_study_and_another_seed_another(run: Path, study: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        options = ("--trials", N, "--seed", seed, "--trust", "--home", tmp_path / "home")
        medattack("readers", run, "--out", tmp_path / name, *options)
    assert (tmp_path / "same" / "key.json").read_bytes() == (study / "key.json").read_bytes()
    assert (tmp_path / "other" / "key.json").read_bytes() != (study / "key.json").read_bytes()


def test_the_altered_picture_is_left_as_often_as_right(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    trials = [Trial("attack", 1, grey, grey + 1) for _ in range(400)]
    write_study(trials, tmp_path / "study", seed=3)
    sides = Counter(each["altered"] for each in json.loads((tmp_path / "study" / "key.json").read_text())["trials"])
    assert 150 < sides["left"] < 250


def test_blocks_part_the_trials_and_are_scored_alone(study: Path, key: dict[str, Any], tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    parted = tmp_path / "parted"
    write_study([Trial("attack", 1 + n % 2, grey, grey + 1) for n in range(7)], parted, seed=3, blocks=3)
    its_key = json.loads((parted / "key.json").read_text())
    assert [trial["block"] for trial in its_key["trials"]] == [1, 1, 1, 2, 2, 3, 3]
    assert '"pauses": [3, 5]' in (parted / "for_readers" / "index.html").read_text()
    file = write(tmp_path / "a.csv", its_key)
    (row,) = json.loads(medattack("readers", parted, "--score", file, "--block", 2, "--json").stdout)["readers"]
    assert row["trials"] == 2
    refused = medattack("readers", parted, "--score", file, "--block", 4, code=2).stderr
    assert "expected a block from 1 to 3" in " ".join(refused.split())
    # a study of an older version has no blocks
    older = tmp_path / "older"
    older.mkdir()
    for trial in key["trials"]:
        del trial["block"]
    (older / "key.json").write_text(json.dumps(key))
    rows = json.loads(medattack("readers", older, "--score", write(tmp_path / "b.csv", key), "--json").stdout)
    assert sum(row["trials"] for row in rows["readers"]) == N


@pytest.mark.parametrize("blocks", [0, 5])
def test_more_blocks_than_trials_are_refused(tmp_path: Path, blocks: int) -> None:
    grey = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match="expected 1 to 4 blocks of 4 trials"):
        write_study([Trial("attack", 1, grey, grey + 1)] * 4, tmp_path / "study", seed=0, blocks=blocks)
    assert not (tmp_path / "study").exists()


def test_pictures_in_colour_keep_their_colours(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    write_study([Trial("attack", 1, colour, colour)], tmp_path / "study", seed=0)
    assert (picture(tmp_path / "study", 1, "left") == colour).all()


def test_right_answers_are_scored_as_right(study: Path, key: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", key)
    result = json.loads(medattack("readers", study, "--score", file, "--json").stdout)["readers"]
    assert [(row["kind"], row["correct"], row["trials"]) for row in result if row["kind"] == "attack"] == [
        ("attack", N - 2, N - 2)
    ]
    assert all(row["share"] == 1 for row in result)
    assert "attacked, 8 times" in medattack("readers", study, "--score", file).stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"t3": "none", "t5": "none"}, "got none to 3, 5"),
        ({"t2": "maybe"}, "expected left or right in .*, got 'maybe' for trial 2"),
        ({"t2": ""}, "got '' for trial 2"),
    ],
)
def test_answers_that_are_absent_or_others_are_refused(
    study: Path, key: dict[str, Any], tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    file = write(tmp_path / "a.csv", key, **changes)
    refused(sentence, study, "--score", file)


def refused(sentence: str, *words: object) -> None:
    import re

    result = medattack("readers", *words, code=2)
    assert re.search(sentence, " ".join(result.stderr.split())), result.stderr
    assert result.stderr.startswith("error: ")


def test_files_that_are_no_answers_of_this_study_are_refused(study: Path, key: dict[str, Any], tmp_path: Path) -> None:
    other = write(tmp_path / "other.csv", key | {"study": "abc"})
    refused("got those of abc", study, "--score", other)
    (tmp_path / "empty.csv").write_text("")
    refused("expected columns study, reader, trial, answer", study, "--score", tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00study")
    refused("save it from the page again", study, "--score", tmp_path / "binary.csv")
    (tmp_path / "short.csv").write_text(f"study,reader,trial,answer\n{key['study']},a\n")
    refused("got none of trial, answer", study, "--score", tmp_path / "short.csv")
    refused("absent.csv", study, "--score", tmp_path / "absent.csv")
    twice = write(tmp_path / "twice.csv", key)
    twice.write_text(twice.read_text() + f"{key['study']},a,1,left,1\n")
    refused("got two to 1", study, "--score", twice)
    unknown = write(tmp_path / "unknown.csv", key)
    unknown.write_text(unknown.read_text() + f"{key['study']},a,99,left,1\n")
    refused("got 99", study, "--score", unknown)
    mixed = write(tmp_path / "mixed.csv", key)
    mixed.write_text(mixed.read_text().replace(",a,2,", ",b,2,"))
    refused("expected one reader", study, "--score", mixed)
    first, second = (write(tmp_path / f"{name}.csv", key) for name in "xy")
    refused("expected one file of each reader, got several of a", study, "--score", first, "--score", second)


def test_what_cannot_be_written_or_scored_is_refused(run: Path, study: Path, tmp_path: Path) -> None:
    refused("give one of them", run)
    refused("which is in use", run, "--out", study)
    trusted = ("--trust", "--home", tmp_path / "home")
    refused("give --trials", run, "--out", tmp_path / "new", "--trials", 999, *trusted)
    noise = next(run.parent.glob("*noise*"))
    refused("expected a run of an attack", noise, "--out", tmp_path / "new", *trusted)
    assert not (tmp_path / "new").exists()
    refused("key.json", run, "--score", tmp_path / "a.csv")
    broken = tmp_path / "broken"
    shutil.copytree(study, broken)
    (broken / "key.json").write_text('{"study": "a", "trials": [{"trial": 1}]}')
    refused("key.json", broken, "--score", tmp_path / "a.csv")


def test_a_folder_in_use_is_refused_by_the_writer_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="in use"):
        write_study([], tmp_path, seed=0)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def wait(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def begin(browser: Any, study: Path, reader: str) -> None:
    browser.get((study / "for_readers" / "index.html").as_uri())
    browser.find_element("id", "reader").send_keys(reader)
    browser.find_element("id", "begin").click()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_asks_by_keyboard_and_mouse_and_saves_what_can_be_scored(
    browser: Any, study: Path, tmp_path: Path
) -> None:
    begin(browser, study, "rater-1")
    body = browser.find_element("tag name", "body")
    for n in range(1, N + 1):
        wait(lambda n=n: browser.find_element("id", "progress").text == f"{n} of {N}.")
        assert browser.execute_script("return document.querySelector('#left img').naturalWidth") > 0
        if n == 1:
            browser.find_element("id", "right").click()
        else:
            body.send_keys("\ue012" if n % 2 else "\ue014")  # the left and the right arrow
    browser.find_element("id", "save").click()
    file = tmp_path / "answers_rater-1.csv"
    wait(file.exists)
    rows = list(csv.DictReader(file.open(newline="")))
    assert [row["answer"] for row in rows] == ["right"] + ["left" if n % 2 else "right" for n in range(2, N + 1)]
    medattack("readers", study, "--score", file)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_reader_who_closed_the_page_goes_on_with_the_next_pair_and_blocks_have_a_pause_between_them(
    browser: Any, tmp_path: Path
) -> None:
    grey = np.zeros((4, 4), np.uint8)
    study = tmp_path / "study"
    write_study([Trial("attack", 1, grey, grey + 1) for _ in range(4)], study, seed=3, blocks=2)

    def shows(text: str) -> None:
        wait(lambda: browser.find_element("id", "progress").text == text)

    begin(browser, study, "a")
    shows("1 of 4.")
    browser.find_element("id", "left").click()
    shows("2 of 4.")
    begin(browser, study, "b")
    shows("1 of 4.")  # another reader has answered nothing
    begin(browser, study, "a")
    shows("2 of 4.")
    browser.find_element("id", "right").click()
    wait(lambda: browser.find_element("id", "block").text == "1 of 2")
    browser.find_element("id", "continue").click()
    for n in (3, 4):
        shows(f"{n} of 4.")
        browser.find_element("id", "left").click()
    browser.find_element("id", "save").click()
    file = tmp_path / "answers_a.csv"
    wait(file.exists)
    assert [row["answer"] for row in csv.DictReader(file.open(newline=""))] == ["left", "right", "left", "left"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
