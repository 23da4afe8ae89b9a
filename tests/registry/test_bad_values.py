"""Values that cannot stand where they are written, in every option there is: one sentence, which names the option."""

import inspect
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from medseg_attack import registry
from medseg_attack.errors import InputError
from medseg_attack.registry.table import KINDS, VALUES, Entry
from medseg_attack.types import Task

NUMBERS = ("nan", "-inf", "(1.0, nan)")
OTHER = ("pgd(steps=3)", "l2(0.5)", "unet_small(channels=(4, 8))", "(bce,)", "(1, 'a')")
OUTSIDE = ("-1000000000", "1000000000.5", "-0.5")
DUMP = re.compile(r"object at 0x|<function|<class|\b[A-Z]\w*\((?:\w+=|\))|functools|\n")
ENTRIES = [registry.find(name) for kind in KINDS for name in registry.names(kind)]


def refusals(entry: Entry, values: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Option, value and sentence of each value that is refused in an option of a name."""
    for field in entry.fields:
        for value in values:
            try:
                registry.build(f"{entry.name}({field}={value})", entry.kind)
            except InputError as error:
                yield field, value, str(error)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_no_option_takes_a_number_that_is_not_finite(entry: Entry) -> None:
    sentences = [sentence for _, _, sentence in refusals(entry, NUMBERS)]
    assert len(sentences) == len(entry.fields) * len(NUMBERS)
    for field, value, sentence in refusals(entry, NUMBERS):
        assert sentence.startswith(f"expected a finite number for {entry.name}.{field}, got "), (value, sentence)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_value_of_another_kind_is_shown_as_it_is_written(entry: Entry) -> None:
    for field, value, sentence in refusals(entry, OTHER):
        assert not DUMP.search(sentence), (field, value, sentence)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_advice_on_a_number_names_its_option_or_changes_another(entry: Entry) -> None:
    for field, value, sentence in refusals(entry, OUTSIDE):
        assert not DUMP.search(sentence), (field, value, sentence)
        advised = dict(re.findall(r"(\w+)=([-\w./]+)", sentence.rpartition(";")[2]))
        kept = {
            name: text
            for name, text in advised.items()
            if name in entry.fields and name != field and text in (str(entry.default(name)), f"{entry.default(name):g}")
        }
        assert not kept or field in advised, (field, value, sentence)


# What a docstring says of a number, and the values next to that bound: those that are taken, and those that are not.
BOUNDS = {
    r"(?<![\d.])(\d+) or more\b|\bat least (\d+)\b": lambda least: ([least], [least - 1]),
    r"\babove (\d+)\b(?! and| up)|(?<=[ ,])> (\d+)": lambda low: ([], [low, low - 1]),
    r"\babove (\d+) and up to 1\b": lambda low: ([1], [low, 2]),
    r"\bbetween (\d+) and 1\b": lambda low: ([], [low, 1]),
    r"\bfrom (\d+) to below 1\b": lambda low: ([low], [1]),
    r"\bin \((\d+), 1\]": lambda low: ([1], [low, 2]),
    r"\bin \[(\d+), 1\](?! of)(?=[ :;,.]|$)": lambda low: ([low, 1], [low - 1, 2]),
    r"\bfrom (\d+) to 1(?=[ :;,.]|$)": lambda low: ([low, 1], [low - 1, 2]),
    r"\bfrom (\d+) to 4294967295\b": lambda low: ([low, 2**32 - 1], [low - 1, 2**32]),
    r"\bin \[(\d+), 1\)": lambda low: ([low], [low - 1, 1]),
}
OWN = [entry for entry in ENTRIES if entry.package.startswith("medseg")]
ANY = Task("any", ("background", "organ"))


def bounds(entry: Entry) -> Iterator[tuple[str, list[int], list[int]]]:
    """Options of a name whose docstring states a bound; values that they take, and values that they do not."""
    listed = entry.doc.partition("Attributes:\n")[2] or entry.doc.partition("Args:\n")[2]
    for names, lines in re.findall(r"^ +(\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", listed, re.M):
        for field in set(names.split(", ")) & set(entry.fields):
            for pattern, values in BOUNDS.items():
                match = re.search(pattern, " ".join(lines.split()))
                if match and type(entry.default(field)) in (int, float):
                    yield field, *values(int(next(filter(None, match.groups()))))
                    break


def build(entry: Entry, field: str, value: int) -> None:
    """Builds the name with that option; a model, which is built for a task, to the end."""
    built = registry.build(f"{entry.name}({field}={value})", entry.kind)
    if entry.kind == "model":
        built(ANY)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_what_a_docstring_says_of_a_number_is_what_is_taken(entry: Entry) -> None:
    for field, taken, refused in bounds(entry):
        for value in taken if entry.kind != "model" else ():  # whose weights are not there
            build(entry, field, value)
        for value in refused:
            with pytest.raises(InputError, match=field):
                build(entry, field, value)


def test_numbers_of_every_kind_have_bounds_in_their_docstrings() -> None:
    n = Counter(entry.kind for entry in OWN for _ in bounds(entry))
    assert n["attack"] > 100
    assert n["certificate"] > 15
    assert n["defence"] > 30
    with_bounds = {"ball", "criterion", "detector", "factor", "goal", "metric", "model", "network", "objective"}
    assert with_bounds | {"attack", "certificate", "dataset", "defence", "poison"} == set(n)


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "-Inf", "nan/2", "1e999", "1/1e-999"])
def test_every_way_to_write_no_finite_number_is_refused(value: str) -> None:
    for text in ("pgd(steps=%s)", "noise(linf(%s))", "pgd(channels(shares=(1, %s)))", "evading(weight=%s)"):
        with pytest.raises(InputError, match=r"expected a finite number for|division by zero"):
            registry.build(text % value, "attack")


def numbers(entry: Entry) -> list[str]:
    """Options of a name that are a number, or a tuple of numbers; of a network those that are fractions."""
    types = {name: str(parameter.annotation) for name, parameter in entry.fields.items()}
    tuples = [name for name, default in defaults(entry).items() if isinstance(default, tuple)]
    plain = [name for name, default in defaults(entry).items() if type(default) in (int, float)]
    found = plain + [name for name in tuples if re.search(r"tuple\[(int|float)", types[name])]
    return [name for name in found if entry.kind not in ("model", "network") or "float" in types[name]]


def defaults(entry: Entry) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in entry.fields.items()}


def made_in_python(entry: Entry, options: dict[str, Any]) -> None:
    """Builds without a spec; of models and networks the bounds are stated where they are registered."""
    if entry.kind in ("model", "network"):
        entry.instance(options)(ANY)
    else:
        entry.make(**options)


@pytest.mark.parametrize("entry", [each for each in OWN if each.kind not in VALUES], ids=lambda entry: entry.name)
def test_what_is_built_in_python_takes_no_number_that_is_not_finite(entry: Entry) -> None:
    """A comparison with NaN is false, so that `value < least` refuses none."""
    needed = {name: 1 for name, default in defaults(entry).items() if default is inspect.Parameter.empty}
    for field in numbers(entry):
        for value in (math.nan, math.inf, -math.inf):
            given = (value,) * max(len(entry.default(field)), 1) if isinstance(entry.default(field), tuple) else value
            with pytest.raises(InputError, match=r"^[^\n]*expected [^\n]*(\b(nan|inf)\b|own\(\))[^\n]*; "):
                made_in_python(entry, needed | {field: given})


def test_numbers_of_every_kind_of_object_are_tried() -> None:
    n = Counter(entry.kind for entry in OWN for _ in numbers(entry))
    assert n["attack"] > 150
    assert {"ball", "certificate", "criterion", "dataset", "defence", "detector", "goal", "model", "poison"} <= set(n)


@pytest.mark.parametrize("name", registry.names("ball"))
def test_a_budget_is_so_much_of_its_unit_and_an_axis_is_in_it(name: str) -> None:
    unit = registry.build(name, "ball").unit
    assert not unit.startswith("of ")


def test_an_option_beside_the_argument_that_it_belongs_to_is_told_its_place() -> None:
    with pytest.raises(InputError, match=r"it is one of SegResNet: write monai\(SegResNet\(init_filters=\.\.\.\)\)$"):
        registry.build("monai(SegResNet, init_filters=8)", "model")
    for text, remedy in (
        (
            "monai(SegResNet, init_filter=8)",
            "did you mean init_filters of SegResNet: write monai(SegResNet(init_filters",
        ),
        ("monai(net=UNet, channels=8)", "it is one of UNet: write monai(net=UNet(channels=...))"),
        ("monai(channels=(8, 16))", "it is one of UNet: write monai(net=UNet(channels=...))"),
        ("monai(UNet, blocks_up=(1, 1))", "it is one of SegResNet: write monai(net=SegResNet(blocks_up=...))"),
        ("monai(UNet, windwo=(8, 8))", "did you mean window? There is: dims"),
        ("monai(UNet, colour=3)", "there is: dims"),
        ("monai('UNet')", "monai.net takes something like SegResNet, got 'UNet'; write UNet without quotes"),
        ("monai('UNets')", "got 'UNets'; take another from 'medattack ls'"),
    ):
        with pytest.raises(InputError, match=re.escape(remedy)):
            registry.build(text, "model")


def test_each_number_of_a_tuple_of_an_architecture_has_its_bounds() -> None:
    for text, sentence in (
        ("UNet(channels=(0, 16))", "expected channels in [1, inf), got 0; write such as channels=16"),
        ("UNet(num_res_units=-1)", "expected num_res_units in [0, inf), got -1"),
        ("DynUNet(strides=(1, 0))", "expected strides in [1, inf), got 0"),
        ("SegResNet(blocks_down=(1, 0))", "expected blocks_down in [1, inf), got 0"),
        ("UNETR(num_heads=0)", "expected num_heads in [1, inf), got 0"),
        ("SwinUNETR(depths=(2, 2, 2, 0))", "expected depths in [1, inf), got 0"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            registry.build(f"monai({text})", "model")


def test_a_tuple_of_other_things_is_refused_by_what_it_takes() -> None:
    for text, kind, sentence in (
        ("best_of((pgd, 3))", "attack", "best_of.attacks takes a tuple of attacks, got (pgd, 3); write one"),
        ("tta('m', gammas=(1.0, 'a'))", "model", "tta.gammas takes a tuple of numbers, got (1.0, 'a'); write one"),
        ("tta(pgd)", "model", "tta.base takes a trained model, got pgd; write the name or folder of a checkpoint"),
        ("stamp(goal=pgd)", "poison", "stamp.goal takes something like erase, got pgd; take another"),
        ("stamp(opacity=2)", "poison", "expected opacity in (0, 1], got 2; write such as opacity=1"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            registry.build(text, kind)


# Bounds that depend on another value: a spec that keeps one, and the next that does not.
TOGETHER = [
    ("local_search(queries=9, candidates=7)", "local_search(queries=8, candidates=7)"),
    ("spsa(queries=11, directions=3, starts=3)", "spsa(queries=10, directions=3, starts=3)"),
    ("zoo(queries=11, coordinates=3, starts=3)", "zoo(queries=10, coordinates=3, starts=3)"),
    ("boundary(queries=15)", "boundary(queries=14)"),
    ("square(first=1)", "square(first=1.01)"),
    ("square(first=0.01)", "square(first=0)"),
    ("patch(scale=0.99)", "patch(scale=1)"),
    ("orthogonal(share=1)", "orthogonal(share=1.01)"),
    ("orthogonal(share=0.01)", "orthogonal(share=0)"),
    ("evading(weight=(0, 1))", "evading(weight=(1, -0.01))"),
    ("apgd(radii=(1, 1))", "apgd(radii=(0.99, 1))"),
    ("apgd(radii=(2, 1))", "apgd(radii=(1, 2))"),
    ("pgd(smooth=1)", "pgd(smooth=2)"),
    ("uap(grid=(1, 1))", "uap(grid=(0, 1))"),
    ("uap_gaussian(deviation=0.01)", "uap_gaussian(deviation=0)"),
    ("bias_field(order=4)", "bias_field(order=3)"),
    ("bias_field(order=1, basis='polynomial')", "bias_field(order=0, basis='polynomial')"),
    ("pose(eps=3, degrees=29.9)", "pose(eps=3, degrees=30)"),
    ("tissue(eps=3, strength=0.3)", "tissue(eps=4, strength=0.25)"),
    ("area(eps=0, margin=0)", "area(eps=0, margin=-1)"),
    ("area(eps=0.99)", "area(eps=1)"),
]


@pytest.mark.parametrize(("kept", "broken"), TOGETHER)
def test_a_bound_that_depends_on_another_value_is_where_it_is_said_to_be(kept: str, broken: str) -> None:
    kind = registry.find(kept.partition("(")[0]).kind
    registry.build(kept, kind)
    with pytest.raises(InputError, match="expected"):
        registry.build(broken, kind)
