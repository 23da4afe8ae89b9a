"""Specs and names: what is typed is what is built, labelled and built again."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.registry import table
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import focal, soft_dice

floats = st.floats(0, 0.999, allow_nan=False)
balls = st.one_of(
    st.builds(Linf, floats), st.builds(L2, floats), st.builds(Linf, st.integers(0, 254).map(lambda n: n / 255))
)
objectives = st.one_of(
    st.sampled_from([soft_dice, focal]), floats.map(lambda s: registry.build(f"soft_dice(smooth={s!r})", "objective"))
)
attacks = st.builds(
    PGD, ball=balls, objective=objectives, steps=st.integers(1, 99), step_size=floats, random_start=st.booleans()
)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the shape check draws names with it
@settings(deadline=None)  # the first look-up imports every module
@given(attacks)
def test_a_spec_builds_what_it_was_made_from(attack: PGD) -> None:
    assert registry.build(registry.spec(attack), "attack") == attack


@pytest.mark.parametrize("kind", ["attack", "ball", "metric", "objective"])
def test_every_name_round_trips(kind: str) -> None:
    for name in registry.names(kind):
        thing = registry.build(name, kind)
        assert registry.build(registry.spec(thing), kind) == thing


def test_positional_values_fill_fields_in_order() -> None:
    attack = registry.build("pgd(linf(4/255), soft_dice, steps=40)", "attack")
    assert (attack.ball, attack.objective, attack.steps) == (Linf(4 / 255), soft_dice, 40)


def test_overrides_fill_what_the_text_leaves_open() -> None:
    attack = registry.build("pgd(steps=3)", "attack", {"steps": 9, "restarts": 2, "unknown": 1})
    assert (attack.steps, attack.restarts) == (3, 2)


def test_with_eps_reaches_the_ball_and_leaves_the_original() -> None:
    attack = PGD()
    assert registry.with_eps(attack, 0.5) == PGD(ball=Linf(0.5))
    assert attack == PGD()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pgdd", "did you mean pgd"),
        ("pgd(step=3)", "did you mean steps or step_size?"),
        ("pgd(__import__('os'))", "unknown ball"),
        ("pgd(objective=bce_los)", "unknown objective: expected one that is registered, got 'bce_los'; "),
        ("pgd(steps=2.5)", "takes a value of type int"),
        ("pgd(steps=True)", "takes a value of type int"),
        ("pgd(steps=0)", "expected steps >= 1, got 0; write steps=1 or more"),
        ("pgd(linf(4))", "write 4/255"),
        ("linf(0.1)", "got the ball 'linf'"),
        ("pgd(bce)", "takes something like linf"),
        ("pgd(ball=3)", "takes something like linf"),
        ("pgd(ball=None)", "takes something like linf"),
        ("pgd(objective=None)", "takes something like bce"),
        ("restarts(attack=None)", "takes something like pgd"),
        ("pgd(steps=None)", "takes a value of type int"),
        ("pgd(steps=99999999999999999999)", "takes a number of 64 bits"),
        ("pgd(linf(1/0))", "division by zero"),
        ("pgd(steps=3, steps=4)", "got 'steps' twice"),
        ("pgd(", "expected a name or a call"),
        ("pgd.x", "expected attack"),
        ("noise(draw='loud')", "sign, uniform, gaussian"),
        ("pgd(linf, steps=lambda: 1)", "expected a value"),
    ],
)
def test_a_wrong_spec_is_told(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        registry.build(text, "attack")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("monai(Bogus)", "got 'Bogus'; there is: DynUNet, SegResNet, SwinUNETR, UNETR, UNet"),
        ("monai(Bogus(depth=3))", "got 'Bogus'; there is: DynUNet, SegResNet, SwinUNETR, UNETR, UNet"),
        ("monai(SegResnet)", "got 'SegResnet'; did you mean SegResNet"),
    ],
)
def test_networks_are_told_where_one_is_wanted(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        registry.build(text, "model")
    assert f"unknown network: expected one that is registered, {sentence}" in str(error.value)


def test_a_name_that_is_not_known_is_told_with_the_folder_of_a_new_one() -> None:
    with pytest.raises(
        InputError, match=r"did you mean linf.*; a new one is a file in medseg_attack/threat/balls; one"
    ):
        registry.build("lnf", "ball")


def test_a_function_without_options_is_itself_however_it_is_written() -> None:
    assert registry.build("focal()", "objective") is registry.build("focal", "objective") is focal


def test_arguments_are_named_by_their_fields_at_any_depth() -> None:
    named = registry.named("best_of((restarts(pgd(linf, bce), 2), apgd))")
    assert str(named) == "best_of(attacks=(restarts(attack=pgd(ball=linf, objective=bce), n=2), apgd))"
    assert named.sets("objective")
    assert not registry.named("sea(linf)").sets("objective")


def test_the_tree_of_an_object_has_its_name_and_what_differs_from_its_defaults() -> None:
    tree = registry.spec_of(PGD(ball=L2(0.5), objective=focal))
    assert (tree.name, str(tree)) == ("pgd", "pgd(ball=l2(eps=0.5), objective=focal)")
    assert registry.build(tree, "attack") == PGD(ball=L2(0.5), objective=focal)
    with pytest.raises(TypeError, match="has no registered name"):
        registry.spec_of(3)


def test_a_name_cannot_be_taken_twice() -> None:
    registry.names("attack")
    with pytest.raises(ValueError, match="got 'pgd', the name of"):
        registry.register("pgd", kind="attack")(lambda: None)
    assert registry.build("pgd", "attack") == PGD()


def test_an_attack_without_a_ball_is_refused_where_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Bare:
        """An attack that forgot its ball."""

        steps: int = 1

    monkeypatch.setattr(table, "entries", {**table.entries})
    monkeypatch.setattr(table, "known_as", {**table.known_as})
    registry.register("bare", kind="attack")(Bare)
    with pytest.raises(InputError, match="give it a field or property 'ball'"):
        table.entries["bare"].instance({})


@pytest.mark.parametrize("kind", [None, "attack", "defence"])
def test_an_unknown_name_may_be_one_of_a_program_that_is_not_this_one(kind: str | None) -> None:
    """As in a run of such a part, which `report` and `verify` read outside of it."""
    with pytest.raises(InputError, match="known in the program alone that registers it: run the command there"):
        table.find("made_elsewhere", kind)
