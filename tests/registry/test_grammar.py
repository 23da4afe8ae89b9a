"""The tree of a spec, which knows no names."""

import math

import pytest

from medseg_attack.errors import InputError
from medseg_attack.registry.grammar import Items, Literal, Spec, parse


def test_a_call_is_a_tree_of_names_values_and_tuples() -> None:
    assert parse("unheard(of, -4/255, n=(1, 'a', inf), deep=known(x=None))") == Spec(
        "unheard",
        (Spec("of"), Literal(-4 / 255, "-4 / 255")),
        (
            ("n", Items((Literal(1, "1"), Literal("a", "'a'"), Literal(math.inf, "inf")))),
            ("deep", Spec("known", (), (("x", Literal(None, "None")),))),
        ),
    )


@pytest.mark.parametrize(
    "text", ["pgd", "pgd(linf(4 / 255), steps=3)", "best_of((pgd, apgd(steps=2)), n=(1,), label='a b', on=True)"]
)
def test_the_text_of_a_tree_is_the_spec_again(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_arguments_are_replaced_and_dropped_at_any_depth_and_nowhere_else() -> None:
    spec = parse("best_of((pgd(linf(eps=0.0), note='eps=0.0'), shuffled(pgd(l2(eps=0.0, n=2)))), eps=0.0)")
    assert str(spec.replace(eps="5HU")) == (
        "best_of((pgd(linf(eps=5HU), note='eps=0.0'), shuffled(pgd(l2(eps=5HU, n=2)))), eps=5HU)"
    )
    assert str(spec.replace(eps=None)) == "best_of((pgd(linf, note='eps=0.0'), shuffled(pgd(l2(n=2)))))"
    assert spec.replace(steps=3) == spec


def test_what_a_spec_sets_and_names_is_seen_at_any_depth_and_not_in_strings() -> None:
    spec = parse("restarts((pgd(linf, objective=bce), for_organ(organ='l2')), n=2)")
    assert [part.name for part in spec.walk()] == ["restarts", "pgd", "linf", "bce", "for_organ"]
    assert spec.sets("objective")
    assert spec.sets("n")
    assert not spec.sets("pgd")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pgd(", "expected a name or a call such as pgd(steps=40), got 'pgd('; write"),
        (r"own('C:\Users\net')", r"; write / for \ in a path"),
        ("own('/home/O'Neill/net')", "; write a path with ' in it between double quotes"),
        ("'pgd'", "expected a name or a call such as pgd(steps=40), got \"'pgd'\"; write"),
        ("a.b", "expected a name or a call such as pgd(steps=40), got 'a.b'; write"),
        ("a.b(3)", "expected a value, got 'a.b(3)'"),
        ("a(*b)", "expected a value, got '*b' in 'a(*b)'; write a number, a string"),
        ("a(**b)", "expected a value, got 'a(**b)'"),
        ("a(1 + 2)", "expected a value, got '1 + 2'"),
        ("a(-b)", "expected a number, got 'b' in 'a(-b)'; write a number"),
        ("a(True / 2)", "expected a number, got 'True'"),
        ("a(1 / (2 / inf))", "got a division by zero in 'a(1 / (2 / inf))'; divide by"),
        ("a(b'c')", "expected a value"),
    ],
)
def test_what_is_no_spec_is_refused_with_what_to_write(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text)
    assert sentence in str(error.value)
