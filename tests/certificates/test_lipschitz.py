"""The Lipschitz network and its certificate: constants against what attacks reach, and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.certificates import lipschitz as certificates
from medseg_attack.certificates.lipschitz import Lipschitz, least_dice
from medseg_attack.errors import InputError
from medseg_attack.models.networks.lipschitz import LipschitzNetwork, operator_norm, spread
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, Case, Task, Window

FREE, ONE = Task("free", ("a", "b")), Task("one", ("background", "a", "b"), exclusive=True)


class PixelByPixel(LipschitzNetwork):
    """Logits that are the image's channels, three times as large: its constant is 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * (x - 0.5)

    def constant(self) -> float:
        return 3.0


def scene(exclusive: bool, seed: int = 0) -> tuple[SegModel, Batch]:
    """A scan whose logits are random, with a truth that they mostly agree with."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3 if exclusive else 2, 8, 8, generator=generator)
    near = image + 0.2 * torch.randn(image.shape, generator=generator)
    task = Task("t", ONE.classes if exclusive else FREE.classes, exclusive, channels=image.shape[1])
    model = SegModel(PixelByPixel(), task)
    case = Case("c", "v", "p", image[0], model.decide(near - 0.5)[0], (1.0, 1.0), Window(0, 1))
    return model, Batch.of([case])


def test_the_joint_budget_of_the_reference() -> None:
    """Logits (2, 1, -1, -3), of which the first two are rightly of the class."""
    dice = [least_dice(np.array([4.0, 1.0]), np.array([1.0, 9.0]), 0, 0, r**2) for r in (0.0, 0.9, 1.0, 1.5, 2.3)]
    assert dice == pytest.approx([1.0, 1.0, 2 / 3, 0.5, 0.0])


def test_every_choice_of_pixels_costs_more_or_leaves_as_much() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, absent = rng.random(4), rng.random(5)
        missed, extra, budget = 2, 1, 1.0
        worst = 1.0
        for lost in range(16):
            for won in range(32):
                a, b = ([bool(n >> i & 1) for i in range(5)] for n in (lost, won))
                if right[a[:4]].sum() + absent[b].sum() <= budget:
                    hit = 4 - sum(a)
                    worst = min(worst, 2 * hit / (2 * hit + missed + sum(a) + extra + sum(b)))
        assert least_dice(right, absent, missed, extra, budget) == pytest.approx(worst)


def test_two_empty_masks_have_the_dice_1_until_a_pixel_is_won() -> None:
    nothing = np.array([])
    assert least_dice(nothing, np.array([1.0]), 0, 0, 0.5) == 1.0
    assert least_dice(nothing, np.array([1.0]), 0, 0, 1.5) == 0.0
    assert least_dice(nothing, nothing, 0, 0, 9.0) == 1.0


def turned(model: SegModel, batch: Batch, k: int, radius: float) -> float:
    """Dice of a class after the best attack on the pixel-by-pixel network, by trying every number of lost pixels."""
    image, truth = batch.image, batch.target[:, k]
    with torch.no_grad():
        answer = model.decide(model(image))[:, k]
    others = torch.cat((image[:, :k], image[:, k + 1 :]), 1)
    lead = image[:, k] - (others.amax(1) if model.task.exclusive else 0.5)
    length = lead.abs() / (math.sqrt(2) if model.task.exclusive else 1)
    least = 1.0
    right, absent = (torch.nonzero(part[0]) for part in (answer & truth, ~answer & ~truth))
    right, absent = (part[length[0][tuple(part.T)].argsort()] for part in (right, absent))
    for lost in range(len(right) + 1):
        for won in range(len(absent) + 1):
            pixels = torch.cat((right[:lost], absent[:won]))
            change = torch.zeros_like(image)
            for row, column in pixels:
                step = -lead[0, row, column] * (1 + 2e-3) - 2e-4 * lead[0, row, column].sign()
                if model.task.exclusive:
                    rival = image[0, :, row, column].clone()
                    rival[k] = -math.inf
                    change[0, k, row, column] += step / 2
                    change[0, int(rival.argmax()), row, column] -= step / 2
                else:
                    change[0, k, row, column] += step
            if change.norm() > radius:
                break
            with torch.no_grad():
                after = model.decide(model(image + change))[:, k]
            overlap = (after & truth).sum().item()
            least = min(least, 2 * overlap / max(int(after.sum() + truth.sum()), 1))
    return least


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_bound_is_reached_by_a_network_that_is_linear_in_each_pixel(exclusive: bool) -> None:
    model, batch = scene(exclusive)
    certificate = Lipschitz()
    with frozen(model):
        observed = certificate.observe(model, batch, [], 0, 8)
        for radius in (0.0, 0.2, 0.5):
            for bound in certificate.bounds(observed, batch, model, [radius]):
                k = model.task.classes.index(bound.cls)
                own, truth = observed.answer[:, k], batch.target[:, k]
                of_all = tuple(int(part.sum()) for part in (truth, own, own & truth))
                assert radius or (bound.n_target, bound.n_certified, bound.hit_certified) == of_all
                reached = turned(model, batch, k, radius)
                assert bound.low <= reached + 1e-12
                assert reached - bound.low < 0.06
                assert radius or bound.low == bound.clean == pytest.approx(reached)


def test_a_constant_that_is_too_small_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelByPixel, "constant", lambda self: 1.0)
    model, batch = scene(False)
    with frozen(model):
        observed = Lipschitz().observe(model, batch, [], 0, 8)
        bounds = Lipschitz().bounds(observed, batch, model, [0.5])
        assert any(turned(model, batch, k, 0.5) < bound.low for k, bound in enumerate(bounds))
        (x,) = Lipschitz().attacked(model, batch, 2.0, 0)
        elsewhere = Lipschitz().observe(model, Batch(x, batch.target, batch.cases), [], 0, 8)
        assert "certified" in Lipschitz().refuted(observed, elsewhere, batch, model, 0.5)


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("channels", [(1, 1), (2, 4), (5, 3)])
def test_the_norm_of_a_kernel_bounds_the_convolution_and_is_near_it(side: int, channels: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(side)
    kernel = torch.randn(channels[1], channels[0], side, side, generator=generator, dtype=torch.float64)
    conv = torch.nn.Conv2d(*channels, side, padding=side // 2, bias=False).double()
    conv.weight.data = kernel
    n = 14
    units = torch.eye(channels[0] * n * n, dtype=torch.float64).view(-1, channels[0], n, n)
    exact = torch.linalg.matrix_norm(conv(units).flatten(1), 2).item()
    assert exact * (1 - 1e-12) <= operator_norm(kernel) <= 1.12 * exact  # the grid is small


def test_images_are_spread_without_a_change_of_their_norm() -> None:
    image = torch.rand(2, 3, 4, 6)
    assert spread(image).shape == (2, 3, 8, 12)
    torch.testing.assert_close(spread(image).norm(), image.norm())


@pytest.fixture(scope="module")
def network() -> SegModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: SegModel = registry.build("unet_lipschitz(channels=(4, 8))", "model")(ONE)
        image = torch.rand(2, 1, 16, 16)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            (-model(image)[:, 1]).mean().backward()
            optimiser.step()
    return model.eval()


def test_no_change_moves_the_logits_further_than_the_constant(network: SegModel) -> None:
    generator, largest = torch.Generator().manual_seed(0), 0.0
    with frozen(network):
        image = torch.rand(1, 1, 14, 19, generator=generator)
        change = 1e-2 * torch.randn(image.shape, generator=generator)
        for _ in range(60):  # climbed, from a random change
            change.requires_grad_()
            rate = (logits(network, image + change) - logits(network, image)).norm() / change.norm()
            (grad,) = torch.autograd.grad(rate, change)
            change = (change + 0.3 * change.norm() * grad / grad.norm()).detach()
            largest = max(largest, rate.item())
    constant = network.net.constant()  # type: ignore[operator]
    assert 0.02 * constant < largest <= constant


def logits(model: SegModel, image: torch.Tensor) -> torch.Tensor:
    """Of the network, padded as the model does it."""
    rows, columns = (-n % model.stride for n in image.shape[2:])
    answer: torch.Tensor = model.net(torch.nn.functional.pad(image, (0, columns, 0, rows)))
    return answer


def test_a_stored_network_answers_as_it_did(network: SegModel) -> None:
    with torch.random.fork_rng():
        other: SegModel = registry.build("unet_lipschitz(channels=(4, 8))", "model")(ONE)
    other.load_state_dict(network.state_dict())
    image = torch.rand(1, 1, 14, 19)
    assert torch.equal(other.eval()(image), network(image))
    assert torch.equal(network(image), network(image))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "got"),
        [
            ({"black_box": True}, "a black box"),
            ({"head": "probabilities"}, "a network that answers with probabilities"),
            ({"size": (8, 8)}, "one whose input is resized"),
            ({"net": torch.nn.Conv2d(1, 2, 1)}, "one whose constant is not known"),
        ],
    )
    def test_networks_of_which_nothing_is_known(self, change: dict[str, object], got: str) -> None:
        options: dict[str, object] = {"net": PixelByPixel()} | change
        model = SegModel(options.pop("net"), FREE, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"expected a Lipschitz network .* got {got}"):
            Lipschitz().require_model(model)

    @pytest.mark.parametrize("options", ["channels=(8,)", "channels=(3, 4)", "scale=0"])
    def test_options_out_of_range(self, options: str) -> None:
        with pytest.raises(InputError, match="expected channels"):
            registry.build(f"unet_lipschitz({options})", "model")(FREE)

    def test_of_the_command(self, tmp_path: Path) -> None:
        medattack(
            "prepare", tmp_path / "s", "--format", "phantom(patients=6, slices=2, side=32)", "--out", tmp_path / "d"
        )
        for spec, name in (("unet_small(channels=(4, 8))", "plain"), ("unet_lipschitz(channels=(4, 8))", "lip")):
            medattack("train", "--data", tmp_path / "d", "--model", spec, "--epochs", 1, "--out", tmp_path / name)
        words = ("certify", "--data", tmp_path / "d", "--certificate", "lipschitz", "--limit", 1, "--check", 1)
        result = medattack(*words, "--model", tmp_path / "plain", "--out", tmp_path / "o", code=2)
        assert "expected a Lipschitz network" in " ".join(result.stderr.split())
        assert not (tmp_path / "o").exists()
        result = medattack(*words, "--model", tmp_path / "lip", "--out", tmp_path / "o")
        assert "without chance" in " ".join(result.stdout.split())


def test_a_bound_that_is_loosened_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """If turning a pixel were thought to cost more than it does, the best attack would get below the bound."""
    monkeypatch.setattr(certificates, "least_dice", lambda *costs: least_dice(*costs[:4], costs[4] / 9))
    model, batch = scene(True)
    with frozen(model):
        observed = Lipschitz().observe(model, batch, [], 0, 8)
        bounds = Lipschitz().bounds(observed, batch, model, [0.5])
        assert any(turned(model, batch, 1 + k, 0.5) < bound.low - 1e-9 for k, bound in enumerate(bounds))
