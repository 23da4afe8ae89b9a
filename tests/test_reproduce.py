"""The scripts in `benchmarks/reproduce` read their studies as these are labelled."""

import importlib
from pathlib import Path

import pytest
import yaml

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.registry.parts import walk
from medseg_attack.runs.grid import cells
from medseg_attack.runs.study import Study

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reproduce"


def test_every_attack_of_the_study_on_transfer_is_read_from_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    bortsova2021 = importlib.import_module("bortsova2021")
    attacks = yaml.safe_load((FOLDER / "bortsova2021.yaml").read_text(encoding="utf-8"))["attacks"]
    surrogates = []
    for text, cell in zip(attacks, cells(Study(attacks=attacks, control=False)), strict=True):
        facts = bortsova2021.facts(cell.label)
        (climb,) = (part for part in walk(cell.attack) if isinstance(part, PGD))
        assert facts["steps"] == str(climb.steps), text
        assert facts["kind"] == ("shuffled" if text.startswith("shuffled") else "attack")
        surrogates.append((facts["network"], facts["pre"], facts["of"]))
    others = [surrogate for surrogate in bortsova2021.SURROGATES if surrogate[2] != "target"]
    assert set(surrogates) == {*others, ("", "", "")}
    assert all(surrogates.count(surrogate) == 5 for surrogate in others)
