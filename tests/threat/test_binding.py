"""A setting reaches every part of an attack, and is no part of what the attack is."""

from typing import Any

import pytest
import torch
from helpers import blobs

from medseg_attack import registry
from medseg_attack.registry.parts import walk
from medseg_attack.threat.balls import regions
from medseg_attack.threat.balls.regions import Within
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.base import Goal
from medseg_attack.types import Bindable, Setting

DEEP = "restarts(best_of((pgd(linf(0.1), toward(bce, erase('round'))), fgsm(linf(0.1)))), n=2)"


def test_every_part_is_bound_at_any_depth_and_the_attack_stays_the_same() -> None:
    attack = registry.build(DEEP, "attack")
    bound = bind(attack, Setting(blobs.TASK, blobs.batch(2).cases))
    parts = [part for part in walk(bound) if isinstance(part, Bindable)]
    assert [type(part).__name__ for part in parts] == ["BestOf", "Erase"]
    assert all(part.setting is not None for part in parts)
    assert all(part.setting is None for part in walk(attack) if isinstance(part, Bindable))
    assert bound == attack
    assert hash(bound) == hash(attack)
    assert registry.spec(bound) == registry.spec(attack)
    assert "setting" not in repr(bound)


@pytest.mark.parametrize("kind", ["attack", "ball", "goal"])
def test_a_setting_is_no_option(kind: str) -> None:
    assert not [name for name in registry.names(kind) if registry.find(name).takes("setting")]


def test_a_change_of_the_budget_leaves_an_attack_bound() -> None:
    setting = Setting(blobs.TASK, blobs.batch(2).cases)
    ball = registry.with_eps(bind(Within(), setting), 0.25)
    assert ball.eps == 0.25
    assert ball.setting is setting


def test_a_region_is_found_once_for_a_setting_and_those_of_some_of_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def counted(case: Any, region: str) -> Any:
        names.append(case.id)
        return region_of(case, region)

    region_of = regions.region_of
    monkeypatch.setattr(regions, "region_of", counted)
    setting, image = Setting(blobs.TASK, blobs.batch(3).cases), blobs.batch(3).image
    attack = registry.within(registry.build("best_of((pgd(linf(0.1)), fgsm(linf(0.1))))", "attack"), "body")
    for _ in range(2):
        ball = bind(attack, setting).ball
        ball.project(image + 0.2, image)
        ball.size(image, image)
    some = bind(attack, setting.at(torch.tensor([2, 0]))).ball
    assert torch.equal(some.mask, ball.mask[[2, 0]])
    assert names == [case.id for case in setting.cases]


def test_the_names_of_a_goal_are_looked_up_when_it_is_bound() -> None:
    goal: Goal = bind(registry.build("erase('square')", "goal"), Setting(blobs.TASK))
    truth = blobs.batch(2).target
    assert not goal(truth)[:, 1].any()
    assert torch.equal(goal(truth)[:, 0], truth[:, 0])


def test_an_attack_that_is_made_of_others_has_their_control() -> None:
    from medseg_attack.runs.grid import cells
    from medseg_attack.runs.study import Study

    texts = ["restarts(for_organ(bias_field))", "restarts(pgd)", "pgd(gain(0.3))"]
    study = Study(data="d", models=["m"], attacks=texts, control=True)
    controls = [registry.spec(cell.attack) for cell in cells(study)][: len(texts)]
    assert controls == ["bias_field(steps=0)", "noise", "noise(ball=gain)"]
