"""One perturbation for all, towards a goal, in a region, and on whom it was learned."""

from dataclasses import replace

import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.universal.uap import UAP
from medseg_attack.models.segmodel import frozen
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Mask, Setting

TRAIN = [Batch.of([blobs.case(8 * n + i) for i in range(8)]) for n in range(4)]


def learned(text: str, data: list[Batch] = TRAIN) -> object:
    with frozen(blobs.healthy()) as model:
        attack: UAP = bind(registry.build(text, "attack"), Setting(model.task))
        return attack.with_learned(attack.fit(model, data, 0))


def predicted(attack: Attack, batch: Batch) -> tuple[Mask, Tensor]:
    """The prediction on attacked images, and their harm."""
    with frozen(blobs.healthy()) as model:
        attack = bind(attack, Setting(model.task, batch.cases))
        result = attack(model, batch.image, batch.target, list(range(len(batch.image))))
        return model.decide(model(result.image)), result.harm


def test_a_goal_takes_its_organ_from_unseen_images_and_leaves_the_other() -> None:
    """Towards `erase` the objective falls, by one minus sign: without it there would be more of that organ."""
    batch = blobs.batch(8)
    attack = learned("uap(linf(0.1), objective=toward(bce, erase('round')), epochs=4, step_size=0.25)")
    before, _ = predicted(registry.build("clean", "attack"), batch)
    after, _ = predicted(attack, batch)
    assert after[:, 0].sum() < 0.5 * before[:, 0].sum()
    assert after[:, 1].sum() > 0.8 * before[:, 1].sum()


def test_a_goal_that_is_a_plain_name_reaches_the_fit_as_one_for_a_task() -> None:
    """As the loop fits: what is not bound to a task yet is bound, at any depth."""
    with frozen(blobs.healthy()) as model:
        attack = registry.build("shuffled(uap(objective=toward(bce, all_background)))", "attack")
        wrapped = bind(attack, Setting(model.task))
        change = wrapped.attack.fit(model, TRAIN[:1], 0)["change"]
    assert change.abs().max() > 0


def test_those_it_was_learned_on_lose_no_less_than_others() -> None:
    attack = learned("uap(linf(0.06), epochs=8, step_size=0.25)", TRAIN[:1])
    known, others = (
        torch.cat([predicted(attack, batch)[1] for batch in data]) for data in (TRAIN[:1], [blobs.batch(32)])
    )
    clean = [predicted(registry.build("clean", "attack"), batch)[1].mean() for batch in (TRAIN[0], blobs.batch(32))]
    assert known.mean() - clean[0] > others.mean() - clean[1] > 0.05


def test_in_a_region_it_is_learned_and_put_there_alone() -> None:
    train, batch = (
        Batch.of([replace(case, classes=blobs.TASK.classes) for case in unnamed.cases])
        for unnamed in (TRAIN[0], blobs.batch(4))
    )
    ring = registry.within(registry.build("uap(linf(0.1), epochs=2)", "attack"), "ring:3mm")
    attack = learned(registry.spec(ring), [train])
    before = batch.image
    with frozen(blobs.healthy()) as model:
        result = bind(attack, Setting(model.task, batch.cases))(model, before, batch.target, [0] * 4)
    moved = (result.image != before)[:, 0]
    organs = batch.target.any(1)
    assert not (moved & organs).any()
    assert moved.flatten(1).any(1).all()
    assert moved.double().mean() < 0.6
