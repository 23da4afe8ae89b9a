"""The leaderboard: what an entry holds, who has a rank, and who has none, for which reason."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.pages import read_html, tables
from helpers.runs import dice_of, edit, write_run

from medseg_attack.report.leaderboard.entries import Entry
from medseg_attack.report.sheet import between, number
from medseg_attack.runs.folder import RunFolder
from medseg_attack.storage.json_files import digest

ORGANS = ("liver", "spleen")
DOUBT = {"code": "MA007", "verdict": "upper bound on robustness", "title": "more steps would do more"}
NOTE = {"code": "MA029", "verdict": "note", "title": "too few patients"}


def flag(record: dict[str, str]) -> dict[str, str]:
    return record | {"about": "case p00_s0", "seen": "CANARY", "todo": "raise steps"}


def write_verified(folder: Path, seed: int, **facts: Any) -> Path:
    """A run of `strongest` as the rules ask for it."""
    facts = {"attack": "strongest", "loss": "", "flags": [], "organs": ORGANS, "weights": chr(97 + seed)} | facts
    run = write_run(folder, dice_of(seed, 7)[:, :, :2], **facts)
    RunFolder(run).seal({})
    return run


def entry_of(runs: Path, out: Path, *words: object) -> dict[str, Any]:
    medattack("report", runs, "--entry", "--out", out, *words)
    (file,) = out.glob("*/*/*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def obstacles(content: dict[str, Any]) -> list[str]:
    return Entry.model_validate(content).obstacles


def test_an_entry_has_the_numbers_of_compare(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0, loss="soft_dice")
    write_verified(tmp_path / "runs", 0, attack="pgd", loss="bce", flags=[flag(NOTE)])
    write_run(tmp_path / "runs", dice_of(2, 7)[:, :, :2], attack="noise", loss="", role="control", organs=ORGANS)
    runs = json.loads(medattack("compare", tmp_path / "runs", "--json").stdout)["runs"]
    content = entry_of(tmp_path / "runs", tmp_path / "out")
    (noise,) = (run for run in runs if run["role"] == "control")
    for name in (*ORGANS, "mean"):
        worst = min((run for run in runs if run["role"] == "attack"), key=lambda run: run[f"{name}_adv"])
        ends = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
        stated = content["classes"][name]
        numbers = [worst[f"{name}_clean"], worst[f"{name}_adv"], *(worst[end] for end in ends), noise[f"{name}_adv"]]
        assert [stated[key] for key in ("clean", "adv", "low", "high", "noise")] == numbers
    assert {attack["mean"] for attack in content["attacks"]} == {r["mean_adv"] for r in runs if r["role"] == "attack"}
    assert content["flags"] == [NOTE]
    assert "CANARY" not in json.dumps(content)
    assert "p00" not in json.dumps(content)
    assert obstacles(content) == []


def test_each_threat_is_an_entry_of_its_own(tmp_path: Path) -> None:
    for eps in (0.01, 0.02):
        write_verified(tmp_path / "runs", 0, eps=eps)
    medattack("report", tmp_path / "runs", "--entry", "--out", tmp_path / "out")
    names = [file.relative_to(tmp_path / "out").as_posix() for file in sorted((tmp_path / "out").rglob("*.json"))]
    assert [name.split("/")[1:] for name in names] == [["linf_0.01", "unet-a.json"], ["linf_0.02", "unet-a.json"]]
    assert len({name.split("/")[0] for name in names}) == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"flags": [flag(DOUBT)]}, "MA007 more steps would do more"),
        ({"flags": [flag(DOUBT | {"verdict": "invalid"})]}, "MA007 more steps would do more"),
        ({"attack": "pgd"}, "not attacked with strongest"),
        ({"partial": True}, "part of the cases (--limit)"),
        ({"split": "val"}, "scored on the val split"),
        ({"knowledge": "native"}, "no attack knows its defence"),
    ],
)
def test_what_is_doubtful_has_no_rank(facts: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0, **facts)
    assert obstacles(entry_of(tmp_path / "runs", tmp_path / "out", "--allow-partial")) == [reason]


def test_runs_that_were_not_verified_or_not_checked_have_no_rank(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    run = write_run(tmp_path / "runs", dice_of(0, 7)[:, :, :2], organs=ORGANS)
    assert "flags" not in json.loads((run / "run.json").read_text())
    content = entry_of(tmp_path / "runs", tmp_path / "out")
    assert obstacles(content) == ["1 of 2 runs not verified", "checks were switched off (--no-checks)"]


def test_a_ball_that_strongest_does_not_keep_to_needs_no_strongest(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0, attack="deformation", ball="displacement(eps=3.0)", eps=3.0)
    assert obstacles(entry_of(tmp_path / "runs", tmp_path / "out")) == []


def test_an_entry_that_was_edited_has_no_rank(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    content = entry_of(tmp_path / "runs", tmp_path / "out")
    content["classes"]["mean"]["adv"] = 0.99
    assert obstacles(content) == ["changed after medattack wrote it"]
    content["digest"] = digest({name: value for name, value in content.items() if name != "digest"})
    assert obstacles(content) == []


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, of which one has a doubtful run, at one budget; and one of them at another."""
    root = tmp_path_factory.mktemp("board")
    write_verified(root / "runs", 0, model="unet", flags=[flag(NOTE)])
    write_verified(root / "runs", 1, model="fpn")
    write_verified(root / "runs", 2, model="segnet", flags=[flag(DOUBT)])
    write_verified(root / "runs", 0, model="unet", eps=0.02)
    medattack("report", root / "runs", "--entry", "--out", root / "entries")
    medattack("leaderboard", root / "entries", "--out", root / "page")
    return root


def test_the_best_comes_first_and_the_doubtful_below(board: Path) -> None:
    text = read_html(board / "page" / "index.html")
    entries = [json.loads(file.read_text()) for file in (board / "entries").glob("*/linf_0.01/*.json")]
    ranked, others, _ = tables(text)
    good = sorted((e for e in entries if not obstacles(e)), key=lambda e: -e["classes"]["mean"]["adv"])
    assert [line[:2] for line in ranked[1:]] == [[str(n), e["model"]["name"]] for n, e in enumerate(good, 1)]
    for line, entry in zip(ranked[1:], good, strict=True):
        mean = entry["classes"]["mean"]
        numbers = [number(mean["adv"]), between(mean["low"], mean["high"]), number(mean["clean"])]
        assert line[2:7] == [*numbers, *(number(entry["classes"][organ]["adv"]) for organ in ORGANS)]
        assert line[-1] == "strongest"
    assert [line[-2] for line in ranked[1:] if line[1] == "unet"] == ["MA029"]
    assert [line[:2] for line in others[1:]] == [["segnet", "MA007 more steps would do more"]]
    assert len(re.findall("<section id=", text)) == 2


def test_the_page_asks_no_network_and_has_no_script(board: Path) -> None:
    text = (board / "page" / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in unescape(text)
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_equal_entries_share_a_rank_and_other_cases_do_not_compete(tmp_path: Path) -> None:
    for model, cases in (("a", "c"), ("b", "c"), ("c", "e")):
        write_verified(tmp_path / "runs", 0, model=model, config={"cases": cases * 64})
    medattack("report", tmp_path / "runs", "--entry", "--out", tmp_path / "out")
    summary = medattack("leaderboard", tmp_path / "out").stdout
    assert sorted(summary.split("\n")[:2]) == [
        "toy: linf 0.01: 1 ranked, 0 without a rank",
        "toy: linf 0.01: 2 ranked, 0 without a rank",
    ]
    ranks = [line[0] for table in tables((tmp_path / "out" / "index.html").read_text()) for line in table[1:]]
    assert sorted(ranks) == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"entry_version": 2}, "entry_version"),
        ({"attacks": []}, "attacks"),
        ({"patients": "7"}, "patients"),
        ({"classes": {"mean": {"attack": "x", "clean": 2}}}, "classes.mean.clean"),
        ({"flags": [{"code": "MA001", "title": "x", "verdict": "fine"}]}, "flags.0.verdict"),
    ],
)
def test_what_is_no_entry_is_refused_by_its_field(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    entry_of(tmp_path / "runs", tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.json")
    edit(file, **changes)
    refusal = " ".join(medattack("leaderboard", tmp_path / "out", code=2).stderr.split())
    assert f"expected the field '{field}" in refusal
    assert not (tmp_path / "out" / "index.html").exists()


def test_an_entry_without_one_of_its_organs_is_refused(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    entry_of(tmp_path / "runs", tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.json")
    edit(file, organs=["liver", "heart"])
    assert "expected the Dice of heart in" in " ".join(
        medattack("leaderboard", tmp_path / "out", code=2).stderr.split()
    )


def test_a_folder_without_entries_is_refused(tmp_path: Path) -> None:
    refusal = " ".join(medattack("leaderboard", tmp_path, code=2).stderr.split())
    assert "expected entries in" in refusal
    assert "make one with medattack report RUNS --entry" in refusal


def test_nothing_but_entries_and_pages_is_written_over(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    out = tmp_path / "out"
    for _ in range(2):
        entry_of(tmp_path / "runs", out)
    medattack("leaderboard", out)
    (file,) = out.rglob("*.json")
    file.write_text('{"mine": 1}')
    refusal = medattack("report", tmp_path / "runs", "--entry", "--out", out, code=2)
    assert "which is something else; name another file" in " ".join(refusal.stderr.split())
    file.unlink()
    entry_of(tmp_path / "runs", out)
    (out / "index.html").write_text("mine")
    assert "which is something else" in " ".join(medattack("leaderboard", out, code=2).stderr.split())
    assert (out / "index.html").read_text() == "mine"


def test_folders_of_the_machine_are_not_in_an_entry(tmp_path: Path) -> None:
    write_verified(tmp_path / "runs", 0)
    label = "transfer(surrogate='/home/jane doe/models/unet', attack=pgd(steps=5))"
    write_verified(tmp_path / "runs", 0, attack=label, loss="toward(bce, stored('/home/jane doe/masks'))")
    text = json.dumps(entry_of(tmp_path / "runs", tmp_path / "out"))
    assert "transfer(surrogate='unet', attack=pgd(steps=5))" in text
    assert "jane" not in text
    assert str(tmp_path) not in text
