"""Runs are read again, those that an older version wrote as well."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import dice_of, edit, write_run

from medseg_attack import registry
from medseg_attack.checks.stored import codes
from medseg_attack.report.tables.attacks import attack_sheet
from medseg_attack.report.tables.comparison import compare_sheet
from medseg_attack.runs.reading import flat, read_runs
from medseg_attack.runs.rows import HEADER
from medseg_attack.runs.stored_files import read_config, read_header
from medseg_attack.runs.stored_specs import HOLDING, attack_spec, ball_spec, norm_of, role_of, sizeless, unit_of
from medseg_attack.runs.study import Study
from medseg_attack.stats.scores import summary


@pytest.mark.parametrize(
    ("attack", "role"),
    [
        ("noise", "control"),
        ("noise(l2)", "control"),
        ("noise within stomach", "control"),
        ("noise deformation(folds=False)", "control"),
        ("shuffled(attack=pgd)", "control"),
        ("clean", "clean"),
        ("fgsm", "attack"),
        ("uap_gaussian", "attack"),
        ("scanner_noise", "attack"),
        ("best_of(attacks=(noise, pgd))", "attack"),
    ],
)
def test_a_role_is_that_of_the_first_name_where_a_header_says_none(attack: str, role: str) -> None:
    assert role_of({"attack": attack}) == role
    assert [role_of({"attack": attack, "role": other}) for other in ("attack", "control")] == ["attack", "control"]


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_run_of_any_seed_is_read(tmp_path: Path, seed: int) -> None:
    """Such seeds were taken before."""
    assert read_config(write_run(tmp_path, dice_of(0, 2), config={"seed": seed}))["seed"] == seed


def test_a_run_whose_header_says_no_role_gets_that_of_its_attack(tmp_path: Path) -> None:
    for attack in ("noise deformation", "fgsm"):
        run = write_run(tmp_path / attack, dice_of(0, 6))
        header = json.loads((run / "run.json").read_text())
        del header["role"]
        (run / "run.json").write_text(json.dumps(header | {"attack": attack}))
    roles = read_runs([tmp_path]).groupby("attack")["role"].unique().map(list)
    assert roles.to_dict() == {"noise deformation": ["control"], "fgsm": ["attack"]}


@pytest.mark.parametrize("fields", [{"flags": []}, {"flags": [], "checks": True}, {"flags": [], "checks": False}, {}])
def test_tables_and_flags_agree_on_whether_a_run_was_checked(tmp_path: Path, fields: dict[str, Any]) -> None:
    run = write_run(tmp_path, dice_of(0, 6))
    header = json.loads((run / "run.json").read_text())
    kept = {name: value for name, value in header.items() if name not in ("checks", "flags")}
    (run / "run.json").write_text(json.dumps(kept | {"attack": "strongest(unit='slice')"} | fields))
    (checked,) = read_runs([run])["checks"].unique()
    assert checked == fields.get("checks", "flags" in fields)
    assert ("MA040" in codes(run, "volume")) == checked


def test_the_role_in_the_header_decides_and_not_the_label(tmp_path: Path) -> None:
    for attack, role in (("aaa", "control"), ("noise", "attack")):
        edit(write_run(tmp_path / attack, dice_of(0, 6)) / "run.json", attack=attack, role=role)
    rows = read_runs([tmp_path])
    sheet = attack_sheet(summary(rows, unit="volume", empty="one", header=HEADER), unit="volume", empty="one")
    assert [row[0] for row in sheet.rows] == ["clean", "aaa", "noise"]
    assert sheet.rules == {0, 1}


def test_a_study_makes_a_control_of_every_attack_and_says_so() -> None:
    from medseg_attack.runs.grid import cells

    study = Study(models=["unet"], attacks=["fgsm", "deformation"], eps=[])
    assert sorted((cell.label, cell.role) for cell in cells(study)) == [
        ("deformation", "attack"),
        ("fgsm", "attack"),
        ("noise", "control"),
        ("noise deformation", "control"),
    ]


@pytest.mark.parametrize(
    ("label", "ball", "shown"),
    [
        ("fgsm 5HU", "linf(eps=5HU)", "fgsm"),
        ("pgd(steps=2) 5HU within ring:10mm", "within(ball=linf(eps=5HU), region='ring:10mm')", "pgd(steps=2)"),
        ("noise 10%window", "linf(eps=10%window)", "noise"),
        ("fgsm", "linf(eps=0.01)", "fgsm"),
        ("fgsm 5HU", "linf(eps=0.01)", "fgsm 5HU"),
    ],
)
def test_the_name_of_an_attack_holds_no_budget(tmp_path: Path, label: str, ball: str, shown: str) -> None:
    """Else an attack at two budgets with a unit counts as two attacks, in tables, curves, sentences and lists."""
    run = write_run(tmp_path, dice_of(0, 3), attack=label, ball=ball)
    (name,) = read_runs([tmp_path])["attack"].unique()
    assert name.removesuffix(" within ring:10mm") == shown
    assert flat(read_header(run))["attack"] == name  # as the flags that are stored with a run call it


def test_an_attack_that_is_typed_has_the_role_of_its_family() -> None:
    from medseg_attack.runs.grid import cells

    attacks = ["clean", "noise(l2(1))", "shuffled(attack=pgd)", "uap_gaussian", "best_of(attacks=(noise, fgsm))"]
    study = Study(models=["unet"], attacks=attacks, eps=["5HU"], region="body", control=False)
    assert [cell.role for cell in cells(study)] == ["clean", "control", "control", "attack", "attack"]


@pytest.mark.parametrize(("name", "family", "role"), [("salt", "controls", "control"), ("noise", "gradient", "attack")])
def test_a_role_does_not_depend_on_how_a_label_begins(
    name: str, family: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg_attack.registry.table import Entry, entries, find, known_as
    from medseg_attack.runs.grid import cells

    noise = find("noise", "attack").make
    new = type("New", (noise,), {"__module__": f"medseg_attack.attacks.{family}.new"})
    monkeypatch.setitem(entries, name, Entry(name, "attack", new))
    monkeypatch.setitem(known_as, new, name)
    (cell,) = cells(Study(models=["unet"], attacks=[name], eps=[], control=False))
    assert (cell.label, cell.role) == (name, role)
    assert role_of({"attack": cell.label}) != role


def test_every_control_of_a_study_is_one_whatever_its_label() -> None:
    from medseg_attack.runs.grid import cells

    study = Study(models=["unet"], attacks=["restarts(motion, n=2)", "pgd(l2)"], eps=["0", "2/255"], region="body")
    roles = {cell.label: cell.role for cell in cells(study)}
    assert {role for label, role in roles.items() if not label.startswith(("restarts", "pgd"))} == {"control"}
    assert {role for label, role in roles.items() if label.startswith(("restarts", "pgd"))} == {"attack"}


@pytest.mark.parametrize(
    ("text", "kind", "unit", "norm"),
    [
        ("linf", "linf", "", "linf"),
        ("linf(4/255)", "linf", "", "linf"),
        ("l2(eps=inf)", "l2", "", "l2"),
        ("linf(eps=0.5%window)", "linf", "%window", "linf"),
        ("within(ball=linf(eps=1e-3sigma), region='body')", "within(ball=linf)", "sigma", "linf"),
        ("within(linf(20raw), 'ring:10mm')", "within(ball=linf, region='ring:10mm')", "raw", "linf"),
        (
            "within(ball=l2(eps=5hu), region='mask:a(eps=5HU.npy')",
            "within(ball=l2, region='mask:a(eps=5HU.npy')",
            "HU",
            "l2",
        ),
        ("within(ball=channels)", "within(ball=channels(ball=linf))", "", "linf"),
        ("displacement(eps=2.0, folds=True)", "displacement(folds=True)", "", "displacement"),
    ],
)
def test_a_ball_of_a_header_is_read_as_a_spec(text: str, kind: str, unit: str, norm: str) -> None:
    ball = ball_spec(text)
    assert (str(sizeless(ball)), unit_of(ball), norm_of(ball)) == (kind, unit, norm)


def test_balls_that_hold_another_are_the_registered_ones() -> None:
    entries = {name: registry.find(name, "ball") for name in registry.names("ball")}
    holding = {name: entry for name, entry in entries.items() if entry.takes("ball")}
    assert set(HOLDING) == set(holding)
    for name, entry in holding.items():
        assert registry.spec_of(entry.default("ball")).name == "linf"
        assert tuple(entry.fields)[: len(HOLDING[name])] == HOLDING[name]
    assert {next(iter(entry.fields)) for name, entry in entries.items() if name not in HOLDING} == {"eps"}


@pytest.mark.parametrize(
    ("label", "attack"),
    [
        ("pgd", "pgd"),
        ("pgd(l2, steps=40) 5HU within mask:a (1).npy", "pgd(l2, steps=40)"),
        ("noise deformation(folds=False)", "noise"),
        ("replay(run='a b (c)') within body", "replay(run='a b (c)')"),
        ("what is this?", "what"),
        ("", ""),
    ],
)
def test_an_attack_of_a_header_is_read_as_a_spec(label: str, attack: str) -> None:
    assert str(attack_spec(label)) == attack


def test_the_norm_of_a_table_is_that_inside_the_region(tmp_path: Path) -> None:
    for ball in ("l2(eps=0.5)", "linf(eps=0.1)"):
        edit(write_run(tmp_path / ball[:2], dice_of(0, 6)) / "run.json", ball=f"within(ball={ball})")
    table = summary(read_runs([tmp_path]), unit="volume", empty="one", header=HEADER)
    sheet = compare_sheet(table, ["norm"], sort="by", unit="volume", empty="one")
    assert sorted(row[0] for row in sheet.rows) == ["l2", "linf"]
