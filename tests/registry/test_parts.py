"""The walker over the parts of attacks."""

import functools
from dataclasses import dataclass
from typing import Any

from medseg_attack.registry.parts import replace_parts, walk


@dataclass(frozen=True)
class Box:
    content: Any = 0
    label: str = ""


DEEP = Box((Box(1, "a"), (Box(Box(2), "b"),), functools.partial(max, 3)), "c")


def test_a_part_is_exchanged_at_any_depth_and_not_looked_into_again() -> None:
    doubled = replace_parts(DEEP, lambda part: Box(part, "new") if part in (1, 2) else None)
    new = Box((Box(Box(1, "new"), "a"), (Box(Box(Box(2, "new")), "b"),), DEEP.content[2]), "c")
    assert doubled == new
    assert DEEP.content[0] == Box(1, "a")


def test_a_part_that_stands_for_itself_is_not_looked_into() -> None:
    def change(part: Any) -> Any:
        return part if isinstance(part, Box) and part.label == "b" else 0 if part == 2 else None

    assert replace_parts(DEEP, change) is DEEP


def test_what_is_not_changed_is_the_same_object() -> None:
    changed = replace_parts(DEEP, lambda part: 9 if part == 2 else None)
    assert changed.content[0] is DEEP.content[0]
    assert changed.content[1][0].content.content == 9
    assert replace_parts(DEEP, lambda part: None) is DEEP


def test_every_part_is_seen_and_classes_are_not_looked_into() -> None:
    parts = list(walk((DEEP, Box)))
    assert [part for part in parts if isinstance(part, int)] == [1, 2]
    assert sum(isinstance(part, Box) for part in parts) == 4
    assert any(part is Box for part in parts)
