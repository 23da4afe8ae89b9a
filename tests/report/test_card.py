"""The robustness card: numbers of `compare --json`, what was not tried, and no word that numbers do not carry."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.pages import read_html, tables, write_detection, write_trial
from helpers.runs import dice_of, write_run

from medseg_attack.report.card.documents import THREATS
from medseg_attack.report.sheet import between, number

ORGANS = ("liver", "spleen")
FLAG = {
    "code": "MA007",
    "verdict": "upper bound on robustness",
    "title": "more steps would do more",
    "about": "pgd",
    "seen": "0.1",
    "todo": "raise steps",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model under noise and two attacks at two budgets, on 7 patients; one run has a flag."""
    root = tmp_path_factory.mktemp("card")
    for eps in (0.01, 0.02):
        dice = dice_of(0, 7)[:, :, :2]
        write_run(root, dice, eps=eps, organs=ORGANS, loss="", attack="noise", role="control")
        write_run(root, dice_of(1, 7)[:, :, :2] - 10 * eps, eps=eps, organs=ORGANS)
        flags = [FLAG] if eps == 0.02 else []
        write_run(
            root, dice_of(2, 7)[:, :, :2] - 10 * eps, eps=eps, organs=ORGANS, loss="dice", attack="pgd", flags=flags
        )
    return root


@pytest.fixture(scope="module")
def card(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("cards")
    medattack("report", runs, "--card", "--out", out)
    return {file.suffix: read_html(file) for file in out.iterdir()}


def table(card: dict[str, str], section: str) -> list[list[str]]:
    """The rows of the table of a section, as HTML shows it."""
    (text,) = re.findall(rf">{section}</h2>.*?</section>", card[".html"], re.DOTALL)
    return tables(text)[0][1:]


def test_the_strongest_attack_of_each_organ_is_that_of_compare(runs: Path, card: dict[str, str]) -> None:
    compared = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    lines, shown = table(card, "Strongest attack, organ by organ"), []
    assert len(lines) == 2 * 3
    for line, (eps, organ) in zip(lines, [(e, o) for e in (0.01, 0.02) for o in (*ORGANS, "mean")], strict=True):
        of_eps = [run for run in compared if run["eps"] == eps]
        worst = min((run for run in of_eps if run["role"] == "attack"), key=lambda run: run[f"{organ}_adv"])
        shown.append(worst)
        (noise,) = (run for run in of_eps if run["role"] == "control")
        ends = ("low", "high") if organ == "mean" else (f"{organ}_low", f"{organ}_high")
        assert line[0].startswith("linf ")
        assert line[1:3] == ["mean over organs" if organ == "mean" else organ, f"{worst['attack']} {worst['loss']}"]
        assert line[3:5] == [number(worst[f"{organ}_clean"]), number(worst[f"{organ}_adv"])]
        assert line[5:7] == [between(worst[ends[0]], worst[ends[1]]), number(noise[f"{organ}_adv"])]
        assert line[7] == ("MA007" if eps == 0.02 and worst["attack"] == "pgd" else "")
    (sources,) = re.findall(r"Runs of these numbers: (.*)\.\n", card[".md"])
    assert set(sources.split(", ")) == {run["run_id"] for run in shown}
    assert [line[1] for line in table(card, "Accuracy without attack")] == ["0.900"] * 3


def test_markdown_and_html_say_the_same(card: dict[str, str]) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[A-Za-z0-9.]{2,}", text))

    body = re.sub(r"<[^>]+>", " ", re.findall(r"<main>.*</main>", card[".html"], re.DOTALL)[0])
    plain = card[".md"].replace("\\", "")
    assert words(unescape(body)) - words(plain) <= {"To"}
    assert len(words(plain)) > 200


def test_it_names_what_was_not_tried_and_claims_nothing(card: dict[str, str]) -> None:
    text = unescape(card[".html"])
    for threat in THREATS:
        assert [threat.name, threat.documents, threat.status] in table(card, "What was not tried")
    assert "Of evasion, these were not tried: the least change that succeeds; attacks that only ask the model" in text
    assert "attacks along the model's gradient" not in text
    assert "No bound was certified" in text
    assert "Whether anybody would notice was not tried." in text
    for word in ("compliant", "compliance", "conform", "fulfils", "2027", "guarantee"):
        assert word not in text.lower()
    for document in ("AI Act, Art. 15", "FDA's draft guidance of January 2025", "NIST AI 100-2", "ISO/IEC 24029-2"):
        assert document in text


def test_the_intended_use_is_left_to_a_person(card: dict[str, str]) -> None:
    assert "**to be filled in by whoever answers for the model:**" in card[".md"]
    assert len(re.findall(r"^- .*: \\_\\_\\_\\_\\_$", card[".md"], re.MULTILINE)) == 4
    assert card[".html"].count('class="blank"') == 4


def test_flags_stand_with_what_to_do(card: dict[str, str]) -> None:
    assert table(card, "Flags") == [[FLAG[name] for name in ("code", "verdict", "title", "todo")]]


def test_what_is_beside_attacks_is_on_the_card_of_its_model_alone(tmp_path: Path) -> None:
    write_trial(tmp_path / "trial", "voted", "unet")
    write_detection(tmp_path / "detectors", model="unet")
    medattack("report", tmp_path, "--card", "--out", tmp_path / "out")
    texts = {name: unescape(read_html(tmp_path / "out" / f"card-{name}.html")) for name in ("voted-b", "unet-a")}
    assert "voted: does not help" in texts["voted-b"] or "voted: not decided" in texts["voted-b"]
    assert "entropy of unet on d: not decided" in texts["unet-a"]
    assert "entropy of" not in texts["voted-b"]


def test_a_model_without_attacks_has_no_card(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 2), role="clean", attack="clean", eps=0.0, loss="")
    refusal = medattack("report", tmp_path / "runs", "--card", "--out", tmp_path / "out", code=2)
    assert "expected attacks on unet, got none among its runs" in " ".join(refusal.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".md", ".html"])
def test_only_a_card_is_written_again(ending: str, runs: Path, tmp_path: Path) -> None:
    words: tuple[Any, ...] = ("report", runs, "--card", "--out", tmp_path)
    medattack(*words)
    medattack(*words)
    (file,) = tmp_path.glob(f"*{ending}")
    file.write_text("mine", encoding="utf-8")
    assert "which is something else; name another file" in " ".join(medattack(*words, code=2).stderr.split())
    assert file.read_text(encoding="utf-8") == "mine"


def test_many_budgets_leave_the_largest_of_each_ball(tmp_path: Path) -> None:
    for n in range(1, 7):
        write_run(tmp_path / "runs", dice_of(n, 2), eps=n / 100)
    medattack("report", tmp_path / "runs", "--card", "--out", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.html")
    assert "The largest budget of each ball; 5 smaller ones left out" in read_html(file)
    assert len(table({".html": read_html(file)}, "Strongest attack, organ by organ")) == 4


def test_each_attack_has_its_goal(tmp_path: Path) -> None:
    goals = {
        "fgsm": "any wrong mask",
        "pgd(objective=toward(bce, erase('liver')))": "a chosen mask",
        "volume_bias(organ='liver')": "another measurement",
    }
    for n, attack in enumerate(goals, start=1):
        write_run(tmp_path / "runs", dice_of(1, 2), attack=attack, loss="", eps=n / 100)
    medattack("report", tmp_path / "runs", "--card", "--out", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.html")
    rows = table({".html": read_html(file)}, "Threat models that were tried")
    assert {row[0]: row[2] for row in rows} == goals
