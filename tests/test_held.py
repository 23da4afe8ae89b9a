"""Every registered attack in a part of the image, in some of its channels, and with the objective its task is for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.universal.gd_uap import GdUap
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.balls.channels import Channels
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Attack, Ball, Batch, Case, Fittable, Setting, Task, Window

BUDGET = {"steps": 4, "queries": 60, "searches": 2, "epochs": 2}
# whose ball may be linf or l2, less those that look for the least change, which search all of [0, 1]
MINIMAL = [name for name in registry.names("attack") if registry.find(name).takes("success")]
ANY_BALL = [name for name in registry.names("attack") if registry.find(name).accepts_any_ball and name not in MINIMAL]
PHYSICAL = ["bef", "bias_field", "cbef", "ghosting", "motion", "rician", "speckle", "vafa"]


def net(channels: int, classes: int, seed: int = 0) -> torch.nn.Module:
    rng = torch.Generator().manual_seed(seed)
    first = torch.randn(6, channels, 3, 3, generator=rng, dtype=torch.float64)
    last = torch.randn(classes, 6, 3, 3, generator=rng, dtype=torch.float64)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(2 * torch.nn.functional.conv2d(x - 0.5, first, padding=1))
            return torch.nn.functional.conv2d(hidden, last, padding=1)

    return Net()


def scene(channels: int = 1, exclusive: bool = False) -> tuple[SegModel, Batch]:
    """A model that is right, on images that are finer than any coarse grid."""
    classes = ("background", "a", "b") if exclusive else ("a", "b")
    model = SegModel(net(channels, len(classes)), Task("t", classes, exclusive, channels), in_channels=channels)
    images = torch.rand(2, channels, 26, 22, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = model.eval().decide(model(images))
    return model, Batch.of(
        [Case(str(n), str(n), str(n), images[n], targets[n], (1.0, 1.0), Window(0, 1), classes=classes) for n in (0, 1)]
    )


def attacked(attack: Any, model: SegModel, batch: Batch) -> tuple[Adversarial, Attack]:
    """As the loop does: what learns does so first, then all are bound to their cases."""
    ready = bind(attack, Setting(model.task))
    if isinstance(ready, Fittable):
        ready = ready.with_learned(ready.fit(model, [batch], 0))
    ready = bind(ready, Setting(model.task, batch.cases))
    return ready(model, batch.image, batch.target, [1, 2]), ready


@pytest.mark.parametrize("name", ANY_BALL + PHYSICAL)
def test_held_to_a_region_it_attacks_there_and_nowhere_else(name: str) -> None:
    model, batch = scene()
    attack = registry.within(registry.build(name, "attack", BUDGET), "outside:a")
    result, ready = attacked(attack, model, batch)
    still = batch.target[:, :1]
    assert torch.equal(result.image[still], batch.image[still])
    assert (result.image != batch.image).flatten(1).any(1).all()
    assert (result.size <= ready.ball.limit + 1e-12).all()
    if name in ANY_BALL:
        assert (result.size > 0.05 * ready.ball.limit).all()


@pytest.mark.parametrize("ball", ["linf(0.05)", "l2(0.5)"])
@pytest.mark.parametrize("name", ["padam", "square", "zoo", "spsa", "boundary", "ni_fgsm"])
def test_in_a_region_it_does_more_than_noise(name: str, ball: str) -> None:
    model, batch = scene()

    def harm(text: str) -> Tensor:
        attack = registry.within(registry.build(text, "attack"), "outside:a")
        return attacked(attack, model, batch)[0].harm

    asks = name in ("square", "zoo", "spsa", "boundary")
    options = "queries=300" if asks else "steps=10"
    goal = ", goal=0.95" if name == "boundary" else ""
    assert harm(f"{name}({ball}, {options}{goal})").mean() > harm(f"noise({ball})").mean()


@pytest.mark.parametrize("name", ANY_BALL)
def test_held_to_channels_it_changes_each_by_its_share_and_no_other(name: str) -> None:
    model, batch = scene(channels=3)
    ball = Channels(Linf(0.06), (0, 2), (1.0, 0.5))
    attack = registry.build(name, "attack", BUDGET | {"ball": ball})
    result, _ = attacked(attack, model, batch)
    moved = (result.image - batch.image).abs().amax((2, 3))
    assert (moved[:, 1] == 0).all()
    assert (moved <= torch.tensor([0.06, 0, 0.03], dtype=torch.float64) + 1e-12).all()
    assert (moved[:, [0, 2]] > 0.05 * 0.06).all()


@pytest.mark.parametrize("name", MINIMAL)
def test_a_search_for_the_least_change_refuses_a_part_of_the_image(name: str) -> None:
    with pytest.raises(InputError, match="in a ball for --region, got one of the least change"):
        registry.within(registry.build(name, "attack"), "body")


def test_what_may_change_is_told_by_the_ball() -> None:
    image = torch.zeros(2, 3, 4, 5)
    assert Linf().free(image).all()
    assert L2().free(image).all()
    only = Channels(Linf(), (1,)).free(image)
    assert only[:, 1].all()
    assert only.sum() == 2 * 4 * 5
    model, batch = scene(channels=3)
    ball = registry.build("within(channels(channels=(2,)), 'outside:b')", "ball")
    region = bind(ball, Setting(model.task, batch.cases))
    expected = torch.zeros_like(batch.image, dtype=torch.bool)
    expected[:, 2] = ~batch.target[:, 1]
    assert torch.equal(region.free(batch.image), expected)


CLIMBERS = [name for name in registry.names("attack") if registry.find(name).takes("objective")]
APART = ("fgsm_wang2024", "igsm")  # the paper's four losses alone; an objective as it is typed


@pytest.mark.parametrize("name", [name for name in CLIMBERS if name not in APART])
class TestSuited:
    """Where classes exclude each other an objective stands for its softmax form, which is refused elsewhere."""

    def test_it_climbs_the_form_of_its_task(self, name: str) -> None:
        model, batch = scene(exclusive=True)
        entries, softmax = (
            attacked(registry.build(name, "attack", BUDGET | {"objective": objective(text)}), model, batch)[0].image
            for text in ("cosine_bce", "cosine_ce")
        )
        assert torch.equal(entries, softmax)

    def test_it_refuses_another_task_s(self, name: str) -> None:
        model, batch = scene()
        attack = registry.build(name, "attack", BUDGET | {"objective": objective("masked_ce")})
        with pytest.raises(InputError, match="take masked_bce"):
            attacked(attack, model, batch)


def objective(text: str) -> Any:
    return registry.build(text, "objective")


# whose queries are not of the ball: a walk from another image, shrunk copies, and steps ahead that are not cut
ASK_ELSEWHERE = ["boundary", "di2_fgsm", "ni_fgsm"]


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.5)], ids=str)
@pytest.mark.parametrize("name", ANY_BALL)
def test_its_steps_are_of_the_size_of_the_ball_whatever_the_norm(name: str, ball: Ball) -> None:
    """No image that it asks about is farther than twice the ball, and it does not stop long before the edge."""
    model, batch = scene()
    farthest = 0.0

    def look(network: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal farthest
        if args[0].shape == batch.image.shape:
            farthest = max(farthest, float(ball.size(args[0].detach(), batch.image).max()))

    model.register_forward_pre_hook(look)
    result, _ = attacked(registry.build(name, "attack", BUDGET | {"ball": ball, "epochs": 8}), model, batch)
    assert farthest <= 2 * ball.limit or name in ASK_ELSEWHERE
    if isinstance(ball, L2):
        assert (result.size > 0.75 * ball.limit).all()


def test_a_step_of_gd_uap_is_a_share_of_the_ball() -> None:
    model, batch = scene()
    grey = torch.full_like(batch.image[:1], 0.5)
    for ball in (Linf(0.05), L2(0.5), Channels(L2(0.5), (0,))):
        start = ball.sample(grey, [7])
        learned = GdUap(ball, steps=1, step_size=0.1).fit(model, [batch], 7)["change"]
        moved = ball.size(grey + learned, start)
        assert (moved > 0).all()
        assert (moved <= 0.1 * ball.eps * 1.001).all()
