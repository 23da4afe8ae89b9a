"""The badge as a picture: what it says, how wide it is, and what it never overwrites."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from medseg_attack.errors import InputError
from medseg_attack.gate.badge import COLOURS, badge, write_badge
from medseg_attack.gate.verdicts import Verdict

PASSES = Verdict("adv_dice<0.5", "m", "pgd", "bce", 0.01, "mean", 0.8, 0.6, 0.9, 0.04, 12, False, "0.01")
FAILS = replace(PASSES, failed=True)
TABLE = pd.DataFrame({"role": ["attack", "control", "attack"], "mean_adv": [0.7, 0.1, 0.5]})


def parts(svg: str, name: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith(f"}}{name}")]


def test_a_badge_shows_the_attack_that_leaves_least_and_no_control() -> None:
    svg = badge(TABLE, ())
    assert [text.text for text in parts(svg, "text")] == ["adversarial Dice", "0.500"]
    assert [title.text for title in parts(svg, "title")] == ["adversarial Dice: 0.500"]
    with pytest.raises(InputError, match="got controls alone"):
        badge(TABLE[TABLE["role"] == "control"], ())


def test_its_halves_are_as_wide_as_their_letters_and_margins() -> None:
    svg = badge(TABLE, ())
    label, number = 16 * 7 + 2 * 7, 5 * 7 + 2 * 7
    assert [(r.get("x"), r.get("width"), r.get("height")) for r in parts(svg, "rect")] == [
        ("0", str(label), "20"),
        (str(label), str(number), "20"),
    ]
    assert [text.get("x") for text in parts(svg, "text")] == [str(label / 2), str(label + number / 2)]
    root = ElementTree.fromstring(svg)
    assert (root.get("width"), root.get("height")) == (str(label + number), "20")


@pytest.mark.parametrize(
    ("verdicts", "word"), [((PASSES, PASSES), "passes"), ((PASSES, FAILS), "fails"), ((FAILS, FAILS), "fails")]
)
def test_a_gate_fails_by_one_verdict(verdicts: tuple[Verdict, ...], word: str) -> None:
    svg = badge(TABLE, verdicts)
    assert [text.text for text in parts(svg, "text")] == ["adversarial Dice", f"0.500, gate {word}"]
    assert parts(svg, "rect")[1].get("fill") == COLOURS[word]
    assert parts(badge(TABLE, ()), "rect")[1].get("fill") == COLOURS[""]


def test_a_badge_is_written_over_a_badge_alone(tmp_path: Path) -> None:
    file = tmp_path / "badge.svg"
    write_badge(badge(TABLE, ()), file)
    write_badge(badge(TABLE, (FAILS,)), file)
    assert "gate fails" in file.read_text(encoding="utf-8")
    file.write_text("<svg>a drawing</svg>")
    with pytest.raises(InputError, match="something else"):
        write_badge(badge(TABLE, ()), file)
    assert file.read_text() == "<svg>a drawing</svg>"
