"""What is read off the source under a name is what is registered under it."""

import pytest

from medseg_attack import registry
from medseg_attack.registry import declared
from medseg_attack.registry.declared import UnreadableError, declarations
from medseg_attack.registry.table import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_declared_is_what_is_registered(kind: str) -> None:
    entries = [registry.find(name) for name in registry.names(kind) if registry.find(name).package.startswith("medseg")]
    declared_by_name = {each.name: each for each in declarations(kind)}
    assert list(declared_by_name) == [entry.name for entry in entries]
    for entry in entries:
        declaration = declared_by_name[entry.name]
        assert declaration.options_line == registry.options(entry)
        assert (declaration.doc, declaration.summary) == (entry.doc, entry.summary)
        assert (declaration.family, declaration.family_title) == (entry.family, entry.family_title)
        assert {name: vars(entry)[name] for name in declaration.facts} == dict(declaration.facts)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "objective"])
def test_every_kind_but_objectives_is_read_without_being_loaded(kind: str) -> None:
    assert [each.name for each in declared.read(kind)] == registry.names(kind)


def test_names_that_a_function_registers_are_loaded() -> None:
    with pytest.raises(UnreadableError, match=r"names that a function of .*weighted registers"):
        declared.read("objective")
    assert "masked_bce" in {each.name for each in declarations("objective")}
