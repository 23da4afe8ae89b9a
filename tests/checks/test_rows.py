"""Each flag that is raised after a run is raised by rows that contradict themselves in that way."""

import importlib
import pkgutil
import re
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pandas as pd
import pytest

from medseg_attack import checks as package
from medseg_attack import registry
from medseg_attack.checks.explanations import explanations
from medseg_attack.checks.flags import Check, Finding, Needs, by_severity, checks_in
from medseg_attack.checks.flags_page import page
from medseg_attack.checks.model import answers, gradients, images
from medseg_attack.checks.model.asking import CHECKS as MODEL_CHECKS
from medseg_attack.checks.model_profile import check_dice_of_cases
from medseg_attack.checks.rows import limits, strength, validity
from medseg_attack.checks.rows.asking import check_rows
from medseg_attack.checks.rows.runs import family, is_transferred
from medseg_attack.runs.stored_specs import role_of
from medseg_attack.stats.patients import TESTS_FROM
from medseg_attack.stats.scores import Unit

EPS = 4 / 255


def checks() -> dict[str, list[Check[Any]]]:
    """All checks of the package, by the code that they raise, in the order of codes."""
    names = (module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
    by_code: dict[str, list[Check[Any]]] = {}
    for check in chain.from_iterable(checks_in(importlib.import_module(name)) for name in sorted(names)):
        by_code.setdefault(check.flag.code, []).append(check)
    return dict(sorted(by_code.items()))


CHECKS = checks()


def run(
    attack: str,
    dice: float,
    *,
    eps: float = EPS,
    backwards: int = 40,
    loss: str = "bce",
    clean: float = 0.9,
    patients: int = 8,
    spread: float = 0.01,
    **header: Any,
) -> pd.DataFrame:
    """A run on patients of one case and organ each, whose mean Dice is about `dice`; 1000 pixels per mask."""
    rows = []
    for i in range(patients):
        of_case = min(max(dice + spread * (i % 2 - 0.5), 0), 1)
        # of equal masks, Dice is the share that both hold
        rows.append(
            {
                "case": f"c{i}",
                "volume": f"v{i}",
                "group": f"g{i}",
                "cls": "organ",
                "n_target": 1000,
                "n_target_adv": 1000,
                "n_clean": 1000,
                "hit_clean": round(1000 * clean),
                "n_adv": 1000,
                "hit_adv": round(1000 * of_case),
                "size": eps,
                "linf": eps,
                "forwards": backwards + 2,
                "backwards": backwards,
            }
        )
    head = {
        "run": f"{attack}-{loss}-{eps}",
        "model": "unet",
        "attack": attack,
        "role": role_of({"attack": attack}),
        "loss": loss,
        "eps": eps,
        "ball": f"linf({eps})",
        "partial": False,
        "val_dice": clean,
    }
    return pd.DataFrame(rows).assign(**(head | header))


def noise(dice: float = 0.89, **more: Any) -> pd.DataFrame:
    return run("noise", dice, backwards=0, loss="", **more)


HEALTHY = [noise(), run("fgsm", 0.6, backwards=1), run("pgd(steps=40)", 0.3), run("pgd(steps=40)", 0.1, eps=8 / 255)]


def found(*tables: pd.DataFrame, **options: Any) -> list[Finding]:
    return check_rows(pd.concat(tables, ignore_index=True), **options)


def codes(*tables: pd.DataFrame, **options: Any) -> set[str]:
    return {finding.code for finding in found(*tables, **options)}


def test_healthy_rows_raise_none() -> None:
    assert found(*HEALTHY) == []


def test_differences_within_the_cases_scatter_raise_none() -> None:
    assert codes(*HEALTHY, run("pgd(steps=80)", 0.32, spread=0.4, backwards=80)) == set()


def test_ma003_clean_scores_that_differ_between_runs() -> None:
    assert codes(*HEALTHY, run("bim", 0.4, clean=0.8)) == {"MA003"}


def test_ma006_more_steps_do_less() -> None:
    assert codes(*HEALTHY, run("pgd(steps=80)", 0.5, backwards=80)) == {"MA006"}


def test_ma007_more_steps_do_more() -> None:
    (one,) = found(*HEALTHY, run("pgd(steps=80)", 0.2, backwards=80))
    assert (one.code, one.run) == ("MA007", f"pgd(steps=80)-bce-{EPS}")


def test_ma007_what_more_than_40_steps_gain_must_be_more() -> None:
    """A few hundredths are gained by more steps from any healthy model."""
    assert codes(*HEALTHY, run("pgd(steps=80)", 0.26, backwards=80)) == set()
    assert "MA007" in codes(*HEALTHY, run("pgd(steps=80)", 0.24, backwards=80))
    few = run("pgd(steps=20)", 0.34, backwards=20)
    assert "MA007" in codes(noise(), few, run("pgd(steps=40)", 0.3))


def test_ma001_gradients_that_are_0_on_some_cases() -> None:
    table = run("pgd(steps=40)", 0.3)
    table["without_slope"] = [float(i in (1, 2)) for i in range(len(table))]
    (one,) = found(table)
    assert (one.code, one.numbers, one.run) == ("MA001", "every gradient was 0 on c1, c2", table["run"][0])
    table.loc[[1, 2], "hit_clean"] = 0  # nothing to lose
    assert "MA001" not in codes(table)


def test_ma037_images_that_were_returned_as_they_were() -> None:
    table = run("pgd(steps=40)", 0.3)
    assert codes(table) == set()
    table.loc[0, "size"] = 0.0
    (one,) = found(table)
    assert (one.code, one.flag.verdict, one.numbers) == ("MA037", "note", "12% of the images are unchanged")
    assert codes(table.assign(eps=0.0, size=0.0, ball="linf(eps=0.0)")) == set()  # without a budget none can change
    table.loc[0, "hit_clean"] = 0
    assert codes(table) == set()
    assert codes(*HEALTHY, run("square", 0.3, backwards=0, size=0.0)) == set()  # no gradient was followed


def test_runs_of_before_the_counts_are_read_like_runs_without_faults() -> None:
    """Next to a run with such a column, the cells of an older one are empty."""
    counted = run("bim", 0.3).assign(without_slope=0.0, without_answer=0.0)
    assert codes(*HEALTHY, counted) == set()


def test_ma008_noise_does_as_much() -> None:
    assert "MA008" in codes(noise(0.62), run("pgd", 0.6))
    assert "MA008" in codes(noise(0.6), run("pgd", 0.9))
    assert "MA008" not in codes(noise(0.62), run("pgd", 0.6, eps=8 / 255))  # of another budget


def test_ma009_the_floor_is_not_reached() -> None:
    assert "MA009" in codes(*HEALTHY, run("bim", 0.5, eps=128 / 255))
    assert "MA009" not in codes(*HEALTHY, run("bim", 0.1, eps=128 / 255))


def test_ma010_a_search_wins() -> None:
    (one,) = found(*HEALTHY, run("square", 0.2, backwards=0))
    assert (one.code, one.about) == ("MA010", "pgd(steps=40) bce eps 4/255")


def test_controls_are_judged_as_controls() -> None:
    """Shuffled perturbations spend gradients and do no harm; uap spent its own on other patients."""
    assert found(*HEALTHY, run("shuffled(attack=pgd)", 0.89)) == []
    assert codes(*HEALTHY, run("uap", 0.2, backwards=0)) == set()


def test_an_edit_by_no_gradient_is_no_rival_of_one_by_gradients() -> None:
    """Both are in the ball edit_area, on images that show other anatomy."""
    searched = run("latent_edit(search=20)", 0.6, ball="edit_area(eps=0.25)")
    assert "MA010" not in codes(*HEALTHY, searched, run("remove", 0.2, backwards=0, ball="edit_area(eps=0.25)"))


def test_ma011_foreign_images_win() -> None:
    assert codes(*HEALTHY, run("replay(run='x')", 0.2, backwards=0, loss="")) == {"MA011"}
    assert codes(*HEALTHY, run("replay(run='x')", 0.5, backwards=0, loss="")) == set()


def test_ma038_knowing_the_defence_does_more() -> None:
    native = run("pgd(steps=20)", 0.8, knowledge="native")
    (one,) = found(native, run("bpda(pgd(steps=20))", 0.3, knowledge="adaptive"))
    assert (one.code, one.run) == ("MA038", f"pgd(steps=20)-bce-{EPS}")
    assert "bpda(pgd(steps=20)) bce eps 4/255 reaches a Dice lower by 0.500" in one.numbers
    assert codes(native, run("bpda(pgd(steps=20))", 0.79, knowledge="adaptive")) == set()  # no more than the tolerance
    assert codes(native, run("bpda(pgd(steps=20))", 0.3, eps=8 / 255, knowledge="adaptive")) == set()  # another ball


@pytest.mark.parametrize(
    ("attack", "raised"),
    [
        ("strongest", {"slice"}),
        ("strongest(unit='slice')", {"volume", "patient"}),
        ("averaged(strongest(unit='slice'), passes=4)", {"volume", "patient"}),
        ("strongest(linf, 160, 'slice')", {"volume", "patient"}),
        ("sea", set()),
        ("sea(unit='volume')", {"slice"}),
        ("best_of((apgd(unit='slice'), strongest(unit='slice')))", {"volume", "patient"}),
    ],
)
def test_ma040_the_table_shows_another_dice_than_the_attack_lowered(attack: str, raised: set[str]) -> None:
    rows = pd.concat([*HEALTHY, run(attack, 0.3, dims=2)])
    checks = [strength.check_unit_of_attack]
    findings = {unit: [each.code for each in check_rows(rows, unit=unit, checks=checks)] for unit in get_args(Unit)}
    assert findings == {unit: ["MA040"] if unit in raised else [] for unit in get_args(Unit)}
    scans = pd.concat([run(attack, 0.3, dims=3)])  # of a 3-D model, whose cases are volumes
    assert check_rows(scans, unit="volume", checks=checks) == []


def test_the_attacks_on_the_dice_of_volumes_are_those_of_the_registry() -> None:
    entries = [registry.find(name, "attack") for name in registry.names("attack")]
    on_volumes = {entry.name for entry in entries if entry.takes("unit") and entry.default("unit") == "volume"}
    assert on_volumes == {strength.OF_VOLUMES}


def test_ma012_a_larger_budget_does_less() -> None:
    assert codes(*HEALTHY, run("pgd(steps=40)", 0.2, eps=16 / 255)) == {"MA012"}


def test_ma013_a_change_beyond_the_budget() -> None:
    blended = run("fgsm_wang2024", 0.6, backwards=1, ball="blend", size=2 * EPS)
    (one,) = found(*HEALTHY, blended)
    assert (one.code, one.flag.verdict) == ("MA013", "invalid")


@pytest.mark.parametrize(
    "ball",
    [
        "linf(eps={})",
        "channels(ball=linf(eps={}), channels=(0, 2))",
        "within(ball=channels(ball=linf(eps={})))",
        "within(ball=linf(eps={}), region='body')",
        "within(ball=linf(eps={}))",
    ],
)
def test_ma013_a_budget_with_a_unit_is_another_one_for_every_case(ball: str) -> None:
    """Each case is held to its own budget, not to their mean, which the header says."""
    own = pd.Series([EPS / 2, 3 * EPS / 2] * 4)
    table = run("pgd(steps=40) 5HU", 0.3, ball=ball.format("5HU")).assign(budget=own, size=own)
    assert codes(table) == set()
    table.loc[0, "size"] = 1.5 * own[0]
    assert codes(table) == {"MA013"}


def test_ma013_a_ball_with_a_unit_of_its_own_is_held_to_the_header() -> None:
    table = run("deformation", 0.3, eps=2.0, ball="displacement(eps=2.0)").assign(budget=float("nan"))
    assert codes(table) == set()
    assert codes(table.assign(size=2.1)) == {"MA013"}


def test_ma015_a_budget_below_one_stored_value_of_some_files() -> None:
    table = run("pgd(steps=40)", 0.3).assign(budget=EPS, level=1 / 255)
    assert codes(table) == set()
    table.loc[:1, "level"] = 5 / 255
    grave, note = found(table)
    assert (grave.code, grave.numbers) == ("MA015", "it changes nothing on 25% of the cases")
    assert note.code == "MA035"
    assert codes(table.assign(ball=f"l2(eps={EPS})")) == set()  # which bounds no single pixel


def test_ma035_a_budget_that_is_rounded_down_to_whole_stored_values() -> None:
    table = run("pgd(steps=40)", 0.3).assign(budget=EPS, level=0.012)
    (one,) = found(table)
    assert (one.code, one.numbers) == ("MA035", "of 0.0157 of the window 0.0120 is realised, mean over cases")
    for level in (EPS, EPS / 30, 0.0, float("nan")):  # 0: floats are stored; NaN: nothing is known of a file
        assert codes(table.assign(level=level)) == set()


def test_ma022_gradients_that_are_not_finite_name_their_cases() -> None:
    table = run("pgd(steps=40)", 0.3)
    table["without_gradient"] = [float(i in (1, 2, 4, 6, 7)) for i in range(len(table))]
    (one,) = found(table)
    assert (one.code, one.flag.verdict) == ("MA022", "invalid")
    assert one.numbers.endswith("on c1, c2, c4 and 2 more")
    answered = run("pgd(steps=40)", 0.3).assign(without_answer=[1.0] + [0.0] * 7)
    assert [each.numbers for each in found(answered)] == ["NaN or infinity in the output on c0"]
    fitted = run("uap", 0.3, backwards=0).assign(fit_without_gradient="t3")
    assert "on t3 (in the fit)" in "".join(each.numbers for each in found(*HEALTHY, fitted))


def test_ma012_norms_in_a_region_are_not_compared() -> None:
    short = run("pgd(steps=40)", 0.3, eps=EPS, ball=f"within(ball=linf(eps={EPS}))")
    long = run("pgd(steps=40)", 0.5, eps=0.5, ball="within(ball=l2(eps=0.5))")
    assert codes(short, long) == set()
    assert codes(short, long.assign(ball="within(ball=linf(eps=0.5))")) == {"MA012"}
    assert codes(short, long.assign(ball="within(ball=linf(eps=0.5), region='ring:10mm')")) == set()


def test_ma012_a_size_left_at_its_default_is_of_the_same_ball() -> None:
    small = run("pgd(steps=40)", 0.3, ball=f"within(ball=linf(eps={EPS}))")
    large = run("pgd(steps=40)", 0.5, eps=8 / 255, ball="within")
    assert codes(small, large) == {"MA012"}


def test_ma012_budgets_in_one_unit_are_compared_and_in_two_are_not() -> None:
    small = run("pgd(steps=40) 5HU", 0.3, ball="linf(eps=5HU)")
    large = run("pgd(steps=40) 10HU", 0.5, eps=8 / 255, ball="linf(eps=10HU)")
    assert codes(small, large) == {"MA012"}
    assert codes(small, large.assign(ball="linf(eps=1sigma)")) == set()


def test_ma009_inside_a_region() -> None:
    """A grey body shows no organ; where a region or other channels stay as they were, the model may still be right."""
    every = run("bim", 0.5, eps=128 / 255)
    for ball in (
        "linf(eps=128/255)",
        "within(ball=linf(eps=128/255), region='body')",
        "within(ball=linf(eps=128/255))",
    ):
        assert "MA009" in codes(*HEALTHY, every.assign(ball=ball))
    for ball in ("within(ball=linf(eps=0.5), region='outside:liver')", "channels(ball=linf(eps=0.5))", "l2(eps=0.5)"):
        assert "MA009" not in codes(*HEALTHY, every.assign(ball=ball))


def test_ma007_steps_left_at_their_default_are_compared() -> None:
    few = run("pgd(l2)", 0.3, backwards=10)
    assert codes(noise(), few, run("pgd(l2, steps=80)", 0.1, backwards=80)) == {"MA007"}
    assert codes(noise(), few, run("pgd(l2, steps=80, step_size=0.1)", 0.1, backwards=80)) == set()


def test_what_attacks_are_judged_apart_is_told_by_their_files() -> None:
    names = registry.names("attack")
    assert {name: family(name) for name in names} == {name: registry.find(name, "attack").family for name in names}
    assert {*strength.NO_RIVALS, "measurements"} <= set(map(family, names))
    assert {name for name in names if is_transferred(name)} == {"replay", "transfer"}
    assert family("of_another_program") == ""
    assert not is_transferred("of_another_program")


@pytest.mark.parametrize("name", [name for name in registry.names("attack") if family(name) in strength.NO_RIVALS])
def test_an_attack_without_a_rival_is_no_reason_to_doubt_the_gradients(name: str) -> None:
    assert codes(*HEALTHY, run(name, 0.2, backwards=0)) == set()


def test_a_name_that_begins_like_another_is_another() -> None:
    assert codes(*HEALTHY, run("replayed", 0.2, backwards=0)) == {"MA010"}
    assert codes(*HEALTHY, run("uaparable", 0.2, backwards=0)) == {"MA010"}


@pytest.mark.parametrize(("clean", "said"), [(0.2, None), (0.6, 0.9)])
def test_ma014_clean_scores_that_cannot_be(clean: float, said: float | None) -> None:
    assert "MA014" in codes(run("pgd", 0.1, clean=clean, val_dice=said))
    assert "MA014" not in codes(run("pgd", 0.1, clean=0.8, val_dice=said))


def test_ma014_where_no_case_has_an_organ_advises_other_cases() -> None:
    empty = run("pgd", 0.1, clean=0.1).assign(n_target=0, hit_clean=0, hit_adv=0, n_target_adv=0)
    for rows, todo in ((empty, "another --split, or all"), (run("pgd", 0.1, clean=0.1), "check preprocessing")):
        (finding,) = [each for each in found(rows) if each.code == "MA014"]
        assert todo in finding.flag.todo
        assert Finding.from_record(finding.record()).sentence == finding.sentence
    (alone,) = check_dice_of_cases({"organ": 0.0}, False)
    (present,) = check_dice_of_cases({"organ": 0.0}, True)
    assert ("--split" in alone.sentence, "--split" in present.sentence) == (True, False)


def test_ma018_one_step_does_more() -> None:
    assert codes(noise(), run("fgsm", 0.2, backwards=1), run("pgd", 0.3)) == {"MA018"}
    assert codes(noise(), run("fgsm", 0.2, backwards=1, loss="focal"), run("pgd", 0.3)) == set()


def test_ma024_an_attack_that_helps() -> None:
    first, *_ = found(noise(), run("pgd", 0.97))
    assert (first.code, first.flag.verdict) == ("MA024", "invalid")
    assert "MA024" not in codes(*HEALTHY)


def test_ma027_single_steps_alone() -> None:
    assert codes(noise(), run("fgsm", 0.5, backwards=1)) == {"MA027"}


def test_ma028_nothing_moves() -> None:
    assert codes(noise(0.9), run("pgd", 0.898)) == {"MA028"}


def test_ma029_few_patients() -> None:
    assert f"fewer than {TESTS_FROM} patients" in page()
    assert codes(noise(patients=5), run("pgd", 0.3, patients=5)) == {"MA029"}
    assert codes(noise(patients=6), run("pgd", 0.3, patients=6)) == set()


def test_ma030_empty_masks_decide() -> None:
    absent = {"n_target": 0, "n_target_adv": 0, "n_clean": 0, "hit_clean": 0, "n_adv": 0, "hit_adv": 0}
    rows = run("pgd", 0.3)
    third = pd.concat([rows, rows.head(4).assign(volume=["w0", "w1", "w2", "w3"], **absent)], ignore_index=True)
    assert "MA030" in codes(third)
    assert "MA030" not in codes(pd.concat([rows, rows.head(1).assign(volume="w0", **absent)], ignore_index=True))


def test_ma031_part_of_the_cases() -> None:
    assert codes(run("pgd", 0.3, partial=True)) == {"MA031"}


def test_ma032_small_organs_suffer() -> None:
    small = run("pgd", 0.2).assign(
        n_target=100, n_target_adv=100, n_clean=100, hit_clean=90, n_adv=100, hit_adv=20, cls="small"
    )
    large = run("pgd", 0.8).assign(cls="large")
    assert codes(small, large) == {"MA032"}
    assert codes(small.assign(hit_adv=70), large) == set()


def test_ma033_noise_wins_on_some_cases() -> None:
    attacked = run("pgd", 0.3)
    attacked.loc[:1, "hit_adv"] = 950
    assert codes(noise(0.8), attacked) == {"MA033"}
    measured = attacked.assign(attack="volume_bias(organ='lv')")  # Dice is not what it goes for
    assert not codes(noise(0.8), measured)


def test_models_are_not_compared_with_each_other() -> None:
    other = [table.assign(model="other", run=table["run"] + "o") for table in HEALTHY]
    changed = [table.assign(hit_clean=950) for table in other]
    assert found(*HEALTHY, *changed) == []


def test_findings_are_ordered_by_severity_and_not_repeated() -> None:
    order = ["MA029", "MA024", "MA007", "MA024"]
    findings = [Finding(CHECKS[code][0].flag, code, "") for code in order]
    assert [finding.code for finding in by_severity(findings)] == ["MA024", "MA007", "MA029"]


def test_a_stored_finding_is_read_with_the_flag_that_was_raised() -> None:
    (finding,) = found(run("pgd", 0.3, partial=True))
    assert Finding.from_record(finding.record()) == finding


def test_ma041_patients_whom_the_model_was_trained_on() -> None:
    assert codes(run("pgd", 0.3, trained_on=2)) == {"MA041"}
    assert codes(run("pgd", 0.3, trained_on=0)) == set()


# the page

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"
TESTS = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))


def test_the_page_is_the_one_that_the_declarations_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m medseg_attack.checks.flags_page > docs/flags.md"


def test_codes_are_declared_once_and_none_is_missing() -> None:
    assert list(CHECKS) == [f"MA{number:03}" for number in range(1, len(CHECKS) + 1)]
    assert all(check.flag is raised_by[0].flag for raised_by in CHECKS.values() for check in raised_by)


@pytest.mark.parametrize("module", [validity, strength, limits, answers, gradients, images])
def test_checks_stand_in_the_order_of_their_codes(module: ModuleType) -> None:
    order = [check.flag.code for check in checks_in(module)]
    assert order == sorted(order)


def test_every_check_of_a_model_is_asked_by_what_it_needs() -> None:
    assert {check.flag.needs for check in MODEL_CHECKS} == set(get_args(Needs))


def test_what_is_read_off_the_source_is_what_is_loaded() -> None:
    explained = explanations()
    assert list(explained) == list(CHECKS)
    for code, raised_by in CHECKS.items():
        flag, explanation = raised_by[0].flag, explained[code]
        assert (explanation.verdict, explanation.title) == (flag.verdict, flag.title)
        conditions = (" ".join(str(check.evidence.__doc__).split("\n\n")[0].split()) for check in raised_by)
        assert explanation.raised_if == "; or ".join(each[7:].removesuffix(".") for each in conditions) + "."


@pytest.mark.parametrize("code", CHECKS)
def test_the_page_explains_every_flag_and_a_test_named_after_it_raises_it(code: str) -> None:
    section = page().split(f"### {code} - ")[1].split("\n### ")[0]
    for part in (f"Verdict: **{CHECKS[code][0].flag.verdict}**", "*Raised if*", "*Explanation*", "*What to do*"):
        assert part in section
    tests = re.findall(rf"^def test_\w*{code.lower()}\w*\(.*?(?=\ndef |\n@pytest|\Z)", TESTS, re.S | re.M)
    assert tests
    for body in tests:
        assert code in body
