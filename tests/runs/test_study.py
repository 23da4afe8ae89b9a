"""Studies: what a file and flags expand to, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.evaluation.opening import _each_once, open_study
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.runs.grid import Cell, cells, judged_by_unit
from medseg_attack.runs.stored_specs import attack_of
from medseg_attack.runs.study import Study, read_study
from medseg_attack.threat.budgets import parse_budget


def expand(**flags: object) -> list[tuple[str, str, str]]:
    study = read_study(None, {"models": ["m"], **flags})
    return [(cell.label, cell.loss, registry.spec(cell.eps)) for cell in cells(study)]


def test_a_study_is_the_product_with_noise_on_top() -> None:
    rows = expand(attacks=["fgsm", "pgd(steps=3)"], losses=["bce", "focal"], eps=["1/255", "0.01"])
    assert rows[:2] == [("noise", "", "1/255"), ("noise", "", "0.01")]
    product = {(a, o, e) for a in ("fgsm", "pgd(steps=3)") for o in ("bce", "focal") for e in ("1/255", "0.01")}
    assert set(rows[2:]) == product
    assert len(rows) == 10


def test_nothing_runs_twice() -> None:
    assert expand(attacks=["fgsm", "fgsm", "noise"], losses=["bce", "bce"], eps=["0.01"]) == [
        ("noise", "", "0.01"),
        ("fgsm", "bce", "0.01"),
    ]


def test_an_attack_keeps_what_it_says_itself() -> None:
    rows = cells(
        read_study(
            None, {"models": ["m"], "attacks": ["pgd(objective=margin, steps=7)"], "losses": ["bce"], "steps": 9}
        )
    )
    assert (rows[-1].loss, rows[-1].attack.steps) == ("margin", 7)


def test_the_label_of_every_attack_has_the_steps_of_the_study() -> None:
    for name in registry.names("attack"):
        for cell in cells(read_study(None, {"models": ["m"], "attacks": [name], "steps": 9, "control": False})):
            assert registry.spec(registry.build(cell.label, "attack")) == cell.spec, cell.label


def test_steps_reach_attacks_that_have_them_alone() -> None:
    rows = cells(read_study(None, {"models": ["m"], "attacks": ["fgsm", "bim"], "steps": 9}))
    assert [cell.attack.steps for cell in rows if cell.label != "noise"] == [1, 9]


@pytest.mark.parametrize(
    ("attack", "of_slices"),
    [
        ("strongest", "strongest(unit='slice')"),
        ("strongest(l2(1.0),gradients=7)", "strongest(l2(1.0), gradients=7, unit='slice')"),
        ("averaged(bpda(strongest), passes=4)", "averaged(bpda(strongest(unit='slice')), passes=4)"),
        ("best_of((sea, strongest))", "best_of((sea, strongest(unit='slice')))"),
        ("strongest(unit='volume')", "strongest(unit='volume')"),
        ("pgd(steps=40,restarts=2)", "pgd(steps=40,restarts=2)"),  # as it was typed
        ("sea", "sea"),
    ],
)
def test_attacks_on_the_dice_of_volumes_follow_what_is_scored(attack: str, of_slices: str) -> None:
    study = read_study(None, {"models": ["m"], "attacks": [attack], "unit": "slice"})
    assert judged_by_unit(study).attacks == [of_slices]
    assert judged_by_unit(judged_by_unit(study)).attacks == [of_slices]
    for unit in ("volume", "patient"):
        assert judged_by_unit(study.model_copy(update={"unit": unit})).attacks == [attack]


def test_norm_reaches_every_ball() -> None:
    rows = cells(read_study(None, {"models": ["m"], "attacks": ["fgsm"], "norm": "l2", "eps": ["0.5"]}))
    assert [registry.spec(cell.attack.ball) for cell in rows] == ["l2(eps=0.5)", "l2(eps=0.5)"]
    assert rows[0].label == "noise(l2)"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"attacks": ["sea"], "losses": ["bce"]}, "an objective for --loss bce, got sea, which takes none"),
        ({"attacks": ["pgd", "strongest"], "losses": ["toward(bce, erase)"]}, "toward(bce, erase), got strongest"),
        ({"attacks": ["pgd", "alma_prox"], "norm": "l2"}, "--norm l2, got alma_prox, which is one of linf"),
        ({"attacks": ["cw"], "norm": "linf"}, "got cw, which is one of l2"),
        ({"attacks": ["jsma"], "norm": "l2"}, "got jsma, which is one of l0"),
        ({"attacks": ["cw"], "region": "body"}, "in a ball for --region, got one of the least change"),
    ],
)
def test_what_an_attack_would_not_follow_is_refused(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        cells(Study(models=["m"], **content))


def test_what_others_follow_is_not_refused() -> None:
    rows = cells(
        Study(models=["m"], attacks=["pgd", "sea", "pgd(objective=ce)", "bias_field"], losses=["bce"], norm="l2")
    )
    assert [cell.loss for cell in rows if cell.label.startswith("pgd")] == ["bce", "ce"]
    assert cells(Study(models=["m"], attacks=["pgd(linf(0.1))", "dag"], norm="l2"))
    controls = ["pgd", "noise", "clean", "uap_gaussian", "replay"]
    assert cells(Study(models=["m"], attacks=controls, losses=["toward(bce, erase)"], norm="l2"))
    assert cells(Study(models=["m"], attacks=["noise"], losses=["bce"]))
    by_position = Study(models=["m"], attacks=["pgd(linf, ce)"], losses=["bce"])
    assert [cell.loss for cell in cells(by_position)] == ["", "ce"]  # as by name


def test_a_norm_in_a_string_is_none_of_the_attacks() -> None:
    with pytest.raises(InputError, match=re.escape("got for_organ(cw, organ='linf'), which is one of l2")):
        cells(Study(models=["m"], attacks=["for_organ(cw, organ='linf')"], norm="linf"))


def test_a_variant_with_its_own_ball_has_its_own_noise() -> None:
    rows = expand(attacks=["fgsm_wang2024"], eps=["0.009"])
    assert rows == [("noise(blend)", "", "0.009"), ("fgsm_wang2024", "bce", "0.009")]


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("models: [a, b]\nattacks: fgsm\neps: [1/255, 0.02]\nseed: 3\n")
    study = read_study(file, {"models": ["c"], "seed": None, "eps": []})
    assert (study.models, study.attacks, study.eps, study.seed) == (["c"], ["fgsm"], ["1/255", "0.02"], 3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("models: [a]\nepsilon: 3\n", "unknown field 'epsilon'"),
        ("models: [a]\nattakcs: fgsm\n", "did you mean attacks?"),
        ("models: [a]\nseed: many\n", "seed"),
        ("models: []\n", "models"),
        ("- a\n", "expected fields"),
        ("models: [a\n", "expected a study in YAML"),
        ("models:\n  - a\n fgsm\n", "but found '<scalar>' in line 3'; correct it"),
        ("models: [a]\neps: high\n", "expected eps as 0.01, 4/255"),
        ("models: [a]\neps: [0.01, -1]\n", "expected eps >= 0"),
        ("models: [a]\nlimit: 1.5\n", "whole number of cases"),
        ("models: [a]\nlimit: 0\n", "greater than 0"),
        ("models: [a]\nnorm: l3\n", "norm"),
        ("models: [a]\nunit: voxel\n", "unit"),
        ("models: [3]\n", "models.0"),
        ("models: [a]\nlimit: true\n", "expected a number, got true"),
        ("models: [a]\nseed: yes\n", "expected a number, got true"),
        ("models: [a]\nsteps: on\n", "expected a number, got true"),
        ("models: [a]\nfold: no\n", "expected a number, got false"),
        ("models: [a]\nseed: -1\n", "greater than or equal to 0"),
        ("models: [a]\nseed: 4294967296\n", "less than or equal to 4294967295"),
        ("models: [a]\nsteps: 010\n", "the number 010, which YAML takes for 8; write it in decimals or quotes"),
        ("models: [a]\nsteps: 1_0\n", "the number 1_0, which YAML takes for 10"),
        ("models: [a]\nseed: 0x1f\n", "the number 0x1f, which YAML takes for 31"),
        ("models: [a]\nlimit: 1:30\n", "the number 1:30, which YAML takes for 90"),
        ("models: [a]\nlimit: 0:30.5\n", "the number 0:30.5, which YAML takes for 30.5"),
    ],
)
def test_a_wrong_file_is_told_by_field(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        read_study(file, {})
    assert sentence in str(error.value)
    assert "study.yaml" in str(error.value)


def test_a_refusal_of_a_study_names_its_file_and_what_the_file_sets_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("models: [a]\nattacks: [pdg]\neps: 0.01\n")
    for flags, below in (
        ({}, f"  {file} sets attacks, eps, models"),
        ({"eps": ["0.02"]}, f"  {file} sets attacks, models"),
    ):
        study = read_study(file, flags)
        with pytest.raises(InputError, match="did you mean pgd") as error:
            open_study(study, tmp_path, torch.device("cpu"), RunOptions())
        assert error.value.args[1:] == (below,)
    with pytest.raises(InputError, match=r"^expected eps as 0\.01"):  # a flag's fault is not the file's
        read_study(file, {"eps": ["high"]})
    with pytest.raises(InputError, match="did you mean pgd") as error:
        open_study(Study(models=["a"], attacks=["pdg"]), tmp_path, torch.device("cpu"), RunOptions())
    assert len(error.value.args) == 1


@pytest.mark.parametrize(
    ("text", "value"), [("0.01", 0.01), ("4/255", 4 / 255), (" 8 / 255 ", 8 / 255), ("0", 0), ("1e-3", 1e-3)]
)
def test_budgets(text: str, value: float) -> None:
    assert parse_budget(text).value == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("-0.1", "eps >= 0"), ("x", "0.01, 4/255, or"), ("1/0", "0.01, 4/255, or"), ("nan", "0.01, 4/255, or")],
)
def test_budgets_that_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        parse_budget(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize("eps", ["4", "1", "1.5"])
def test_a_bare_number_of_one_and_more_is_no_fraction(eps: str) -> None:
    with pytest.raises(InputError, match=f"write {eps}/255"):
        expand(attacks=["fgsm"], eps=[eps])


def test_a_length_may_be_more_than_one() -> None:
    assert expand(attacks=["fgsm"], norm="l2", eps=["2"])[1] == ("fgsm(l2)", "bce", "2.0")


def test_a_variant_keeps_its_ball_and_its_swap_under_every_flag() -> None:
    study = read_study(None, {"models": ["m"], "attacks": ["fgsm_wang2024"], "losses": ["focal"], "norm": "l2"})
    attack = cells(study)[-1].attack
    assert (registry.spec(attack), attack.swapped) == ("fgsm_wang2024(objective=focal)", True)
    with pytest.raises(InputError, match="an objective of the paper"):
        expand(attacks=["fgsm_wang2024"], losses=["margin"])


@pytest.mark.parametrize(
    ("text", "width", "slope", "noise", "fraction"),
    [
        ("5HU", 400.0, 1.0, 0.0, 5 / 400),
        ("1.25%window", 400.0, 1.0, 0.0, 0.0125),
        ("20raw", 400.0, 0.5, 0.0, 20 * 0.5 / 400),
        ("2sigma", 400.0, 1.0, 0.01, 0.02),
        ("4/255", 400.0, 1.0, 0.0, 4 / 255),
    ],
)
def test_a_budget_in_each_unit(text: str, width: float, slope: float, noise: float, fraction: float) -> None:
    size = parse_budget(text).fraction(width=width, slope=slope, unit="HU", noise=noise, case="c")
    assert size == fraction


def test_one_budget_in_two_units_is_one_float() -> None:
    same = {"width": 400.0, "slope": 1.0, "unit": "HU", "noise": 0.0, "case": "c"}
    in_hu, in_window, raw = (parse_budget(t).fraction(**same) for t in ("5HU", "1.25%window", "5raw"))  # type: ignore[arg-type]
    assert in_hu == in_window == raw


def test_hu_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match=r"expected intensities in HU .* in case9"):
        parse_budget("5HU").fraction(width=400, slope=1, unit="", noise=0, case="case9")
    with pytest.raises(InputError, match="5mm"):
        parse_budget("5mm")


def test_a_described_change_has_a_random_one_of_its_kind_as_control() -> None:
    rows = expand(attacks=["deformation(steps=3)", "bef", "rician"], losses=["bce"])
    assert [label for label, _, _ in rows] == [
        "noise deformation(steps=3)",
        "noise bef",
        "noise rician",
        "deformation(steps=3)",
        "bef",
        "rician",
    ]
    study = read_study(None, {"models": ["m"], "attacks": ["deformation"], "eps": ["2.5"]})
    control, attack = cells(study)
    twice = read_study(None, {"models": ["m"], "attacks": ["restarts(deformation, n=2)"], "eps": ["2.5"]})
    assert cells(twice)[0].attack == control.attack
    assert registry.spec(control.attack) == "deformation(ball=displacement(eps=2.5), steps=0)"
    assert attack.attack.ball.eps == 2.5


def test_a_unit_of_intensities_is_refused_where_there_is_another() -> None:
    with pytest.raises(InputError, match=r"in its own unit \(mm\) as a plain number, got --eps 5HU"):
        expand(attacks=["deformation"], eps=["5HU"])


def test_a_region_holds_every_attack_and_its_noise() -> None:
    study = read_study(None, {"models": ["m"], "attacks": ["pgd", "bias_field"], "eps": ["0.1"], "region": "ring:5mm"})
    rows = cells(study)
    assert [cell.label for cell in rows] == [
        f"{name} within ring:5mm" for name in ("noise", "noise bias_field", "pgd", "bias_field")
    ]
    assert {cell.attack.ball.region for cell in rows} == {"ring:5mm"}
    assert all(registry.build(registry.spec(cell.attack), "attack") == cell.attack for cell in rows)
    moved = registry.with_eps(rows[2].attack, 0.2)
    assert (moved.ball.eps, moved.ball.region) == (0.2, "ring:5mm")


def grid(**flags: object) -> list[Cell]:
    return cells(read_study(None, {"models": ["m"], "control": False, **flags}))


def test_a_budget_with_a_unit_is_named_in_spec_ball_and_folder() -> None:
    (cell,) = grid(attacks=["pgd(channels(linf, channels=(0, 2)), steps=3)"], eps=["5HU"])
    assert cell.label == "pgd(channels(ball=linf, channels=(0, 2)), steps=3) 5HU"
    assert cell.ball == "channels(ball=linf(eps=5HU), channels=(0, 2))"
    assert cell.spec == f"pgd(ball={cell.ball}, steps=3)"
    assert cell.slug.endswith("_bce_eps5HU")
    assert registry.build(attack_of({"attack": cell.spec, "budget": "5HU"}), "attack") == cell.attack
    (plain,) = grid(attacks=["pgd"], eps=["4/255"])
    assert (plain.spec, plain.slug) == (registry.spec(plain.attack), "pgd_bce_eps4of255")


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("vafa", "vafa"),
        ("vafa(quantised(10))", "vafa"),
        ("vafa(ball=quantised(block=32))", "vafa(quantised(block=32))"),
        ("deepfool", "deepfool"),
        ("deepfool(l2(20))", "deepfool(l2)"),
        ("pgd(linf(2/255))", "pgd"),
        ("for_organ(strongest, organ='lv')", "for_organ(attack=strongest, organ='lv')"),
    ],
)
def test_a_label_says_what_differs_from_the_default_less_the_size(typed: str, label: str) -> None:
    assert [cell.label for cell in grid(attacks=[typed])] == [label]


@pytest.mark.parametrize("field", ["models", "attacks", "losses", "eps", "metrics"])
def test_what_is_named_twice_is_taken_once(field: str) -> None:
    texts = ["8/255", "4/255", "8/255"] if field == "eps" else ["b", "a", "b"]
    assert getattr(read_study(None, {"models": ["m"], field: texts}), field) == texts[:2]


def test_a_metric_in_two_spellings_is_one_column_and_a_loss_one_attack() -> None:
    metrics = ["hd95_mm()", "nsd(tolerance_mm=2)", "hd95_mm", "nsd", "nsd(tolerance_mm=1.0)"]
    study = _each_once(Study(models=["m"], metrics=metrics, losses=["focal(gamma=2)", "bce()", "bce", "focal"]))
    assert study.metrics == ["hd95_mm", "nsd", "nsd(tolerance_mm=1.0)"]
    assert study.losses == ["focal(gamma=2)", "bce()"]
