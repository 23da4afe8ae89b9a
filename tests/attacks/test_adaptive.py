"""Attacks that know a defence: each of the fixtures that look robust is broken, and nothing else changes."""

from functools import cache

import pytest
import torch
from helpers import blobs

from medseg_attack import registry
from medseg_attack.attacks.blackbox.square import Square
from medseg_attack.attacks.composed.adaptive import Averaged, MeanOfPasses, ThroughStandIns
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.checks.probes import mean_dice
from medseg_attack.defences.inputs.bit_depth import BitDepth
from medseg_attack.defences.inputs.jpeg import Jpeg
from medseg_attack.defences.inputs.median import Median
from medseg_attack.defences.inputs.resize_pad import ResizePad
from medseg_attack.defences.models.ensemble import ensemble
from medseg_attack.defences.models.guarded import guarded
from medseg_attack.defences.models.voted import voted
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Attack, Batch, Setting, Task

TASK = blobs.TASK
EPS = 20 / 255
NATIVE = PGD(Linf(EPS), soft_dice, steps=20)
ADAPTIVE = Averaged(ThroughStandIns(NATIVE), 4)


def base(task: Task) -> SegModel:
    return blobs.healthy()


FIXTURES = {
    "quantiser": lambda: guarded(TASK, base, (BitDepth(3),)),
    "jpeg": lambda: guarded(TASK, base, (Jpeg(75),)),
    "quantiser and jpeg": lambda: guarded(TASK, base, (BitDepth(4), Jpeg(90))),
    "votes": lambda: ensemble(TASK, (base, lambda task: blobs.broken(after=lambda z: 0.7 * z)), fuse="votes"),
    "median": lambda: guarded(TASK, base, (Median(3),)),
    "resize and pad": lambda: guarded(TASK, base, (ResizePad(1.2),)),
    "noise": lambda: voted(TASK, base, sigma=0.04, draws=1),
}


@cache
def scores(name: str) -> dict[str, float]:
    """Mean Dice of a fixture on clean images, under the attack that does not know it, and under the one that does."""
    model, batch = FIXTURES[name](), blobs.batch(4)
    clean = registry.build("clean", "attack")
    with frozen(model):
        results = attack_chunk(model, [batch], [clean, NATIVE, ADAPTIVE])
    return dict(zip(("clean", "native", "adaptive"), map(_dice, results), strict=True))


def _dice(result: object) -> float:
    rows = result.rows  # type: ignore[attr-defined]
    return sum(2 * row.hit_adv / max(row.n_target + row.n_adv, 1) for row in rows) / len(rows)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_attack_that_knows_breaks_every_fixture(name: str) -> None:
    of = scores(name)
    assert of["clean"] > 0.6
    assert of["adaptive"] < of["clean"] / 2


@pytest.mark.parametrize("name", ["quantiser", "jpeg", "quantiser and jpeg", "votes"])
def test_the_native_number_of_what_has_no_gradient_is_false(name: str) -> None:
    of = scores(name)
    assert of["native"] > of["clean"] - 0.35  # a random start, and no direction
    assert of["native"] - of["adaptive"] > 0.25


@pytest.mark.parametrize("name", ["median", "resize and pad"])
def test_what_has_a_gradient_falls_to_the_attack_that_does_not_know_it(name: str) -> None:
    assert scores(name)["native"] < scores(name)["clean"] / 2


def test_the_attack_through_stand_ins_on_a_model_without_layers_is_the_attack() -> None:
    batch = blobs.batch(2)
    for attack in (NATIVE, Square(Linf(EPS), queries=8), BestOf((PGD(steps=2), PGD(steps=3)))):
        for around in (ThroughStandIns(attack), Averaged(attack, 5), ADAPTIVE if attack is NATIVE else attack):
            plain, knowing = (_images(base(TASK), batch, each) for each in (attack, around))
            assert torch.equal(plain, knowing)


def _images(model: SegModel, batch: Batch, attack: Attack) -> torch.Tensor:
    with frozen(model):
        (result,) = attack_chunk(model, [batch], [attack], keep_images=True)
    return torch.stack(result.images)


def test_the_stand_in_of_a_quantiser_is_the_identity() -> None:
    """Its gradient at x is the network's at the quantised x, to the last bit."""
    model, x = guarded(TASK, base, (BitDepth(3),)), blobs.batch(1).image.clone().requires_grad_()
    (through,) = torch.autograd.grad(bind(model, Setting(TASK, backward="adapted"))(x).sum(), x)
    quantised = BitDepth(3)(x.detach(), [0]).requires_grad_()
    (direct,) = torch.autograd.grad(base(TASK)(quantised).sum(), quantised)
    assert torch.equal(through, direct)


def test_the_gradient_through_the_stand_in_agrees_with_an_estimate_by_queries() -> None:
    """The rule's own check: its cosine with SPSA's estimate, at differences of more than one level, is above 0.1."""
    model, batch = guarded(TASK, base, (BitDepth(4),)), blobs.batch(1)
    bound = bind(model, Setting(TASK, batch.cases, backward="adapted"))
    x = batch.image.clone().requires_grad_()
    (through,) = torch.autograd.grad(soft_dice(bound(x), batch.target, 1.0).sum(), x)
    estimate, rng = torch.zeros_like(through), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(400):
            signs = (torch.rand(x.shape, generator=rng) < 0.5).float() * 2 - 1
            rise = soft_dice(bound(x + 0.05 * signs), batch.target, 1.0) - soft_dice(
                bound(x - 0.05 * signs), batch.target, 1.0
            )
            estimate += rise * signs
    assert torch.cosine_similarity(estimate.flatten(), through.flatten(), dim=0) > 0.1


def test_the_mean_of_more_passes_has_a_steadier_gradient() -> None:
    """Two independent gradients of many passes agree more than two of one."""
    model, batch = voted(TASK, base, sigma=0.2, draws=1), blobs.batch(1)
    x = batch.image.clone().requires_grad_()

    def gradient(passes: int, stream: str) -> torch.Tensor:
        bound = bind(model, Setting(TASK, batch.cases, stream=stream, backward="adapted"))
        return torch.autograd.grad(soft_dice(MeanOfPasses(bound, passes)(x), batch.target, 1.0).sum(), x)[0].flatten()

    alike = [torch.cosine_similarity(gradient(n, "one"), gradient(n, "two"), dim=0) for n in (1, 12)]
    assert alike[1] > alike[0] + 0.1


def test_passes_are_counted_in_full() -> None:
    model, batch = voted(TASK, base, sigma=0.1, draws=2), blobs.batch(1)
    with frozen(model):
        results = attack_chunk(
            model, [batch], [PGD(steps=3), Averaged(PGD(steps=3), 5), Averaged(Square(queries=4), 5)]
        )
    plain, mean, square = (result.rows[0] for result in results)
    assert (mean.forwards, mean.backwards) == (5 * plain.forwards, 5 * plain.backwards)
    assert square.forwards == 5 * 4


def test_what_is_scored_was_not_drawn_by_the_attack() -> None:
    """With its random numbers frozen, a model would be broken like any other: no attack may see those of the score."""
    model, batch = guarded(TASK, base, (ResizePad(1.2),)), blobs.batch(2)
    seen: list[torch.Tensor] = []
    model.net.register_forward_hook(lambda _, inputs, answer: seen.append(answer.detach()))  # type: ignore[union-attr]
    streams = []
    for stream in ("attack 0", "score"):
        bound = bind(model, Setting(TASK, batch.cases, stream=stream))
        with torch.no_grad():
            streams += [bound(batch.image) for _ in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(streams) for b in streams[i + 1 :])


def test_dice_of_the_fixture_is_measured_as_in_the_probes() -> None:
    batch = blobs.batch(2)
    model = base(TASK)
    with torch.no_grad():
        assert mean_dice(model, model.decide(model(batch.image)), batch.target).min() > 0.5
