"""What every registered attack and metric must keep, so that a new file is tested by existing."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.judging import truth_after
from medseg_attack.attacks.physical.ascent import Parametrised
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.flows import warped
from medseg_attack.types import Attack, Batch, Case, Fittable, Task, Window

TASK = Task("contract", ("a", "b"))
EPS = 8 / 255
# replay needs a run: cli/test_cli.py; worst_prompt a promptable model: attacks/test_worst_prompt.py
ATTACKS = [name for name in registry.names("attack") if name not in ("replay", "worst_prompt")]
# what a name needs beside itself, and fewer queries than an attack has by default
SPECS = {
    "boundary": "boundary(queries=40)",
    "spsa": "spsa(queries=40, directions=2, grid=6)",
    "transfer": "transfer(surrogate=oracle)",
    "zoo": "zoo(queries=40, coordinates=4)",
}
COUPLED: set[str] = set()  # names whose samples are meant to feel each other


class Net(nn.Module):
    """Small, with a batch norm and a dropout that must both stay as they are."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm, self.drop, self.last = nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 6 * self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


FEW = {"steps": 6, "searches": 2, "queries": 12}  # a contract holds for any number of steps


def built(name: str, eps: float = EPS) -> Attack:
    """The attack as it comes, but short."""
    short = {} if name in SPECS else FEW
    attack: Attack = registry.with_eps(registry.build(SPECS.get(name, name), "attack", short), eps)
    if isinstance(attack, Fittable):
        attack = attack.with_learned(attack.fit(*FITTED_ON, seed=0))
    return attack


def _to_fit_on() -> tuple[SegModel, list[Batch]]:
    """Other images than those of the scene."""
    rng = torch.Generator().manual_seed(8)
    cases = [
        Case(
            str(n),
            str(n),
            str(n),
            torch.rand(1, 12, 10, generator=rng).double(),
            torch.rand(2, 12, 10, generator=rng) < 0.4,
            (1.0, 1.0),
            Window(0, 1),
        )
        for n in range(4)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return SegModel(Net(1, 2), TASK).double().eval(), [Batch.of(cases[:2]), Batch.of(cases[2:])]


def channels_of(name: str) -> int:
    return 3 if name == "fgsm_wang2024" else 1


FITTED_ON = _to_fit_on()


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Iterator[tuple[SegModel, Tensor, Tensor, list[int]]]:
    name = request.getfixturevalue("name")
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = SegModel(Net(channels_of(name), 2), TASK, in_channels=channels_of(name)).double()
    image = torch.rand(4, 1, 12, 10, generator=generator, dtype=torch.float64)
    image[1] = 0.3  # constant
    target = torch.rand(4, 2, 12, 10, generator=generator) < 0.4
    target[2] = False  # a slice without organs
    with frozen(model):
        yield model, image, target, [11, 12, 13, 14]


@pytest.mark.parametrize("name", ATTACKS)
class TestAttack:
    def test_stays_in_its_ball_and_in_the_box(
        self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]
    ) -> None:
        model, image, target, seeds = scene
        attack = built(name)
        result = attack(model, image, target, seeds)
        still = image if result.flow is None else warped(image, result.flow)
        image = still.expand_as(result.image)
        assert result.image.dtype == image.dtype
        assert result.image.shape[2:] == image.shape[2:]
        size = attack.ball.total_size(result.image, image, result.flow)
        assert (size <= attack.ball.limit + 1e-12).all()
        assert result.image.min() >= 0
        assert result.image.max() <= 1
        assert torch.isfinite(result.image).all()
        torch.testing.assert_close(result.size, size)

    def test_a_budget_of_nothing_changes_nothing(
        self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]
    ) -> None:
        model, image, target, seeds = scene
        result = built(name, 0.0)(model, image, target, seeds)
        assert torch.equal(result.image, image.expand_as(result.image))

    def test_the_same_seeds_give_the_same_bits(
        self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]
    ) -> None:
        model, image, target, seeds = scene
        torch.manual_seed(0)
        first = built(name)(model, image, target, seeds).image
        torch.manual_seed(1)
        assert torch.equal(first, built(name)(model, image, target, seeds).image)

    def test_batch_equals_one_by_one(self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]) -> None:
        if name in COUPLED:
            pytest.skip(f"{name} couples its samples by design")
        model, image, target, seeds = scene
        attack = built(name)
        together = attack(model, image, target, seeds)
        for i, seed in enumerate(seeds):
            alone = built(name)(model, image[i : i + 1], target[i : i + 1], [seed])
            torch.testing.assert_close(together.harm[i : i + 1], alone.harm, atol=1e-9, rtol=0)
            torch.testing.assert_close(together.size[i : i + 1], alone.size, atol=1e-9, rtol=0)
            # two poses of one harm and one size are a tie, which the last bit of the size decides
            if not isinstance(attack, Parametrised):
                torch.testing.assert_close(together.image[i : i + 1], alone.image, atol=1e-9, rtol=0)

    def test_leaves_everything_as_it_was(self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]) -> None:
        model, image, target, seeds = scene
        before = image.clone(), target.clone(), {k: v.clone() for k, v in model.state_dict().items()}
        rng = torch.random.get_rng_state()
        built(name)(model, image, target, seeds)
        assert torch.equal(image, before[0])
        assert torch.equal(target, before[1])
        assert all(torch.equal(v, before[2][k]) for k, v in model.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
        assert not any(module.training for module in model.modules())
        assert torch.equal(rng, torch.random.get_rng_state())
        assert not image.requires_grad

    def test_its_harm_is_what_the_model_does_on_its_image(
        self, name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]
    ) -> None:
        from medseg_attack.metrics.harm import harm

        model, image, target, seeds = scene
        attack = built(name)
        result = attack(model, image, target, seeds)
        kept = ~attack.ball.covered(result.image, image.expand_as(result.image))
        truth = truth_after(result, target, model.task.exclusive) & kept
        torch.testing.assert_close(result.harm, harm(model.decide(model(result.image)) & kept, truth).double())


@pytest.mark.parametrize("name", [n for n in ATTACKS if getattr(registry.build(n, "attack"), "keep_worst", False)])
def test_an_attack_that_keeps_the_worst_is_never_better_than_clean(
    name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]
) -> None:
    from medseg_attack.metrics.harm import harm

    model, image, target, seeds = scene
    result = built(name)(model, image, target, seeds)
    assert (result.harm >= harm(model.decide(model(image)), target) - 1e-12).all()


# a random network has no larger structure for a blurred gradient; what blends copies has its own control
WHITE_BOX = [n for n in ATTACKS if registry.find(n).family == "gradient" and n not in ("fgsm_wang2024", "ti_fgsm")]


@pytest.mark.parametrize("name", [*WHITE_BOX, "sea"])
def test_gradients_beat_noise(name: str, scene: tuple[SegModel, Tensor, Tensor, list[int]]) -> None:
    model, image, _, seeds = scene
    target = model.decide(model(image))  # a model that is right, so that harm starts at 0
    noise = built("noise", 0.1)(model, image, target, seeds).harm.mean()
    assert built(name, 0.1)(model, image, target, seeds).harm.mean() > 1.5 * noise


def test_a_sweep_gives_each_budget_what_it_gets_alone() -> None:
    from medseg_attack.attacks.gradient.pgd import fgsm
    from medseg_attack.threat.balls.norms import L2, Linf

    torch.manual_seed(3)
    model = SegModel(Net(1, 2), TASK)
    image, target = torch.rand(3, 1, 9, 9), torch.rand(3, 2, 9, 9) < 0.5
    with frozen(model):
        balls = [Linf(0.01), Linf(0.05), L2(0.5)]
        swept = fgsm().sweep(model, image, target, [1, 2, 3], balls)
        for ball, result in zip(balls, swept, strict=True):
            assert torch.equal(result.image, fgsm(ball)(model, image, target, [1, 2, 3]).image)
            assert torch.equal(result.size, fgsm(ball)(model, image, target, [1, 2, 3]).size)


def test_a_single_step_at_many_budgets_asks_for_one_gradient_and_is_judged_once() -> None:
    from medseg_attack.attacks.counting import CountedModel
    from medseg_attack.attacks.gradient.pgd import fgsm
    from medseg_attack.threat.balls.norms import Linf

    torch.manual_seed(3)
    model = SegModel(Net(1, 2), TASK)
    image, target = torch.rand(3, 1, 9, 9), torch.rand(3, 2, 9, 9) < 0.5
    with frozen(model):
        counted = CountedModel(model)
        passes = [
            (counted.forwards, counted.backwards, bool(result.harm.isnan().all()))
            for result in fgsm().sweep(counted, image, target, [1, 2, 3], [Linf(eps / 100) for eps in range(1, 7)])
        ]
    assert passes == [(2, 1, False), *[(2, 1, True)] * 5]


MASKS = torch.zeros(4, 3, 9, 7, dtype=torch.bool)
MASKS[0, 0, 2:5, 2:5] = True
MASKS[1, 0, 4:8, 1:4] = True
MASKS[1, 1, :, 3] = True
MASKS[2] = True
SPACING = [(1.0, 2.0), (0.5, 0.5), (3.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("name", registry.names("metric"))
class TestMetric:
    def test_identity_is_perfect_and_nothing_is_nan(self, name: str) -> None:
        value = registry.build(name, "metric")(MASKS, MASKS, SPACING)
        present = MASKS.flatten(2).any(2)
        assert value.shape == (4, 3)
        assert torch.isnan(value[~present]).all()
        assert set(value[present].tolist()) == ({0.0} if name.endswith("_mm") else {1.0})

    def test_it_is_symmetric(self, name: str) -> None:
        metric = registry.build(name, "metric")
        torch.testing.assert_close(
            metric(MASKS, MASKS.roll(1, 0), SPACING), metric(MASKS.roll(1, 0), MASKS, SPACING), equal_nan=True
        )

    def test_a_case_does_not_depend_on_its_batch(self, name: str) -> None:
        metric = registry.build(name, "metric")
        together = metric(MASKS, MASKS.roll(1, 3), SPACING)
        for i in range(4):
            alone = metric(MASKS[i : i + 1], MASKS.roll(1, 3)[i : i + 1], SPACING[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, equal_nan=True)

    def test_a_missed_organ_counts(self, name: str) -> None:
        """Rule for one empty mask: the grid's diagonal in mm, or no agreement; never left out."""
        metric = registry.build(name, "metric")
        nothing = torch.zeros_like(MASKS[:1])
        for pred, target in ((nothing, MASKS[:1]), (MASKS[:1], nothing)):
            value = metric(pred, target, SPACING[:1])[0, 0].item()
            assert value == pytest.approx((9**2 + 14**2) ** 0.5 if name.endswith("_mm") else 0.0)
