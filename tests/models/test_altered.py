"""Networks with exchanged layers: what they compute, that they train, and what the attack that knows them finds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.discs import SMALL, Discs, trained
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import begin_with, load, read_card
from medseg_attack.models.model_ref import resolve as model_of
from medseg_attack.models.networks.altered import average_pooling, bounded_relu
from medseg_attack.models.networks.filters import ContextEncoding, Denoising
from medseg_attack.models.networks.fusion import Patterns, edges, feature_fusion
from medseg_attack.models.networks.scale_free import connections, scale_free
from medseg_attack.models.networks.smp import unet_small
from medseg_attack.models.networks.two_norms import adversarial_norms
from medseg_attack.models.saturation import BoundedReLU, Sign, backward_through
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.training.options import Options, label, resolve
from medseg_attack.types import Setting, Task

FEW = Discs(slices=2)
TASK = Task("altered", ("a", "b"))
SMALL_NET = "unet_small(channels=(4, 8))"
NETWORKS = [
    f"bounded_relu({SMALL_NET}, bound=2.0)",
    f"sign_activation({SMALL_NET})",
    f"feature_denoising({SMALL_NET})",
    f"nlce({SMALL_NET})",
    f"bounded_relu(nlce({SMALL_NET}))",
    f"scale_free({SMALL_NET}, density=0.5)",
    "average_pooling(smp(encoder='resnet18'))",
    "feature_denoising(smp(encoder='resnet18'))",
    "scale_free(smp(encoder='resnet18'), density=0.1)",
    f"feature_fusion({SMALL_NET})",
    "feature_fusion(smp(encoder='resnet18'))",
]


@pytest.mark.parametrize("spec", NETWORKS[:6])
def test_a_network_with_other_layers_is_trained_and_read_again(spec: str, tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, model=spec, epochs=1, batch_size=2)
    trained(tmp_path / "model", FEW, options)
    card = read_card(tmp_path / "model")
    assert card["label"] == resolve(options, FEW).model
    assert card.get("blocks_gradient", False) == ("relu" in spec or "sign" in spec)
    assert model_of(str(tmp_path / "model"), FEW.task).blocks_gradient == card.get("blocks_gradient", False)


@pytest.mark.parametrize("spec", NETWORKS)
def test_all_weights_of_a_network_with_other_layers_have_a_gradient(spec: str) -> None:
    torch.manual_seed(0)
    model: SegModel = build(spec, "model")(TASK).train()
    model(torch.rand(2, 1, 64, 64)).square().sum().backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert silent == []


@pytest.mark.parametrize(
    "spec",
    [
        f"feature_denoising({SMALL_NET})",
        f"nlce({SMALL_NET})",
        f"two_norms({SMALL_NET})",
        f"scale_free({SMALL_NET}, density=1.0)",
        f"nlce(two_norms(feature_denoising({SMALL_NET})))",
        f"feature_fusion({SMALL_NET})",
        f"nlce(feature_fusion({SMALL_NET}))",
    ],
)
def test_a_network_with_other_layers_begins_with_the_weights_of_the_plain_one(spec: str, tmp_path: Path) -> None:
    """Filters that pass on what they get leave the plain network's answers, through either norm."""
    trained(tmp_path / "plain", FEW, dataclasses.replace(SMALL, epochs=1, batch_size=2))
    plain = load(tmp_path / "plain")
    torch.manual_seed(3)
    model: SegModel = build(spec, "model")(FEW.task).eval()
    begin_with(model, tmp_path / "plain")
    for layer in model.modules():
        if isinstance(layer, ContextEncoding):
            for part in (layer.out.weight, layer.out.bias, layer.gate.weight):
                nn.init.zeros_(part)
            nn.init.constant_(layer.gate.bias, 30.0)
    image = FEW.read(FEW.refs("val")[0]).image[None]
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain(image))
        with adversarial_norms():
            torch.testing.assert_close(model(image), plain(image))


def test_weights_of_other_layers_alone_do_not_make_a_plain_network(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, model=f"nlce({SMALL_NET})", epochs=1, batch_size=2)
    trained(tmp_path / "nlce", FEW, options)
    with pytest.raises(InputError, match=r"expected weights in .* of the same architecture, or of the network within"):
        begin_with(build(SMALL_NET, "model")(FEW.task), tmp_path / "nlce")


def test_size_and_patches_reach_the_innermost_network() -> None:
    data = Discs(shapes=((24, 24), (20, 30)))
    plan = resolve(Options(model="bounded_relu(nlce(unet_small))"), data)
    assert plan.model == "bounded_relu(model=nlce(model=unet_small(size=(160, 160))))"
    assert label(plan.model) == "bounded_relu(model=nlce(model=unet_small))"
    assert resolve(Options(model="sign_activation"), FEW).model == "sign_activation(model=unet_small)"
    with pytest.raises(InputError, match="unet_small has no encoder_weights"):
        resolve(Options(model="nlce", encoder_weights="imagenet"), FEW)


def test_pretrained_weights_of_an_inner_network_are_not_fetched_to_read_a_checkpoint() -> None:
    from medseg_attack.models.checkpoints import build_model

    spec = "average_pooling(smp(encoder='resnet18', encoder_weights='nowhere'))"
    assert build_model(spec, TASK, pretrained=False).dims == 2


def test_a_bound_that_nothing_reaches_is_a_relu() -> None:
    x = torch.linspace(-3, 3, 61)
    assert torch.equal(BoundedReLU(9.0)(x), torch.relu(x))
    assert torch.equal(BoundedReLU(1.0)(x), torch.nn.functional.relu(x).clamp(max=1))


@pytest.mark.parametrize("layer", [BoundedReLU(1.0), Sign().eval()])
def test_an_activation_that_saturates_has_a_slope_under_bpda_alone(layer: nn.Module) -> None:
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    (own,) = torch.autograd.grad(layer(x).sum(), x, allow_unused=True, materialize_grads=True)
    assert own.abs().max() == 0
    with backward_through("adapted"):
        out = layer(x)
        (smooth,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, layer(x))
    assert (smooth > 0).all()


def test_signs_are_trained_through_the_straight() -> None:
    x = torch.tensor([-2.0, 0.5], requires_grad=True)
    (grad,) = torch.autograd.grad(Sign().train()(x).sum(), x)
    assert grad.tolist() == [0.0, 1.0]


def test_the_attack_that_knows_a_saturated_network_moves_it_further() -> None:
    """All activations lie above the bound: the native gradient is 0, and no sign leads anywhere."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for conv, weight, bias in ((net[0], 20.0, -9.0), (net[2], 4.0, -2.0)):
            conv.weight.fill_(weight)  # type: ignore[operator, union-attr]
            conv.bias.fill_(bias)  # type: ignore[operator, union-attr]
    one = Task("one", ("organ",))
    model = bounded_relu(one, lambda task: SegModel(net, task)).eval().requires_grad_(False)
    image, target = torch.full((1, 1, 4, 4), 0.51), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    native, adaptive = (
        build(spec, "attack")(model, image, target, [0]) for spec in ("fgsm(linf(0.1))", "bpda(fgsm(linf(0.1)))")
    )
    assert native.harm.item() == 0
    assert adaptive.harm.item() == 1
    assert model.bind(Setting(one, backward="own")) is not model


def test_average_pooling_keeps_a_constant_and_needs_max_pooling() -> None:
    pool = average_pooling(TASK, build("smp(encoder='resnet18')", "model")).net.encoder.maxpool  # type: ignore[union-attr]
    assert isinstance(pool, nn.AvgPool2d)
    assert torch.allclose(pool(torch.full((1, 3, 9, 9), 0.7)), torch.tensor(0.7))
    with pytest.raises(InputError, match="expected a network with max pooling for average_pooling, got one without"):
        build("average_pooling(unet_small)", "model")(TASK)


@pytest.mark.parametrize("dims", [2, 3])
def test_filters_begin_as_what_the_reference_says(dims: int) -> None:
    x = torch.rand(2, 6, *(20, 18, 5)[:dims])
    assert torch.equal(Denoising(6, dims)(x), x)
    block = ContextEncoding(6, dims)
    with torch.no_grad():
        for weight in (block.out.weight, block.out.bias, block.gate.weight):
            weight.zero_()
        block.gate.bias.fill_(10)
    torch.testing.assert_close(block(x), x, rtol=5e-5, atol=0)


def test_the_non_local_filter_is_the_mean_over_all_pixels_weighed_by_likeness() -> None:
    x = torch.rand(1, 3, 4, 5)
    layer = Denoising(3, 2).eval()
    with torch.no_grad():
        layer.norm.weight.fill_(1)
        layer.conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        layer.conv.bias.zero_()  # type: ignore[union-attr]
        points = x.flatten(2)[0].T
        expected = points + (points @ points.T @ points) / 20 / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(layer(x).flatten(2)[0].T, expected)


def test_a_checkpoint_of_an_altered_network_has_no_gradient_where_it_saturates(tmp_path: Path) -> None:
    trained(tmp_path / "sign", FEW, dataclasses.replace(SMALL, model=NETWORKS[1], epochs=1, batch_size=2))
    model = load(tmp_path / "sign")
    x = torch.rand(1, 1, 24, 24, requires_grad=True)
    with backward_through("adapted"):
        (smooth,) = torch.autograd.grad(model.net(x).sum(), x)
    assert smooth.abs().max() > 0


def test_connections_of_a_channel_follow_the_power_law_and_are_as_many_as_asked_for() -> None:
    """The slope of the histogram of degrees, in bins of equal width on a logarithmic axis, beyond its mode."""
    slopes = {}
    for exponent in (2.5, 3.0):
        kept = connections(512, 512, 0.1, exponent, seed=0)
        assert kept.sum() == round(0.1 * 512 * 512)
        degrees = torch.cat((kept.sum(0), kept.sum(1))).numpy()
        assert degrees.min() >= 1
        edges = np.geomspace(degrees.min(), degrees.max() + 1, 9)
        share = np.histogram(degrees, edges)[0] / np.diff(edges)
        tail = slice(int(share.argmax()), None)
        slopes[exponent] = np.polyfit(np.log(edges[:-1][tail]), np.log(np.maximum(share[tail], 1e-9)), 1)[0]
    assert -3.5 <= slopes[3.0] <= -2
    assert slopes[2.5] > slopes[3.0]


@pytest.mark.parametrize(("outside", "inside", "density"), [(8, 4, 0.01), (3, 9, 0.2), (16, 16, 1.0)])
def test_every_channel_keeps_a_connection(outside: int, inside: int, density: float) -> None:
    kept = connections(outside, inside, density, 3.0, seed=1)
    assert kept.any(0).all()
    assert kept.any(1).all()
    assert torch.equal(kept, connections(outside, inside, density, 3.0, seed=1))
    assert kept.all() == (density == 1)


def test_what_is_not_connected_stays_so_in_training_and_in_the_checkpoint(tmp_path: Path) -> None:
    spec = f"scale_free({SMALL_NET}, density=0.5)"
    trained(tmp_path / "model", FEW, dataclasses.replace(SMALL, model=spec, epochs=1, batch_size=2))
    before, after = build(spec, "model")(FEW.task), load(tmp_path / "model")
    assert after.net.state_dict().keys() == before.net.state_dict().keys()
    sparse = 0
    for own, other in zip(before.modules(), after.modules(), strict=True):
        if isinstance(own, nn.Conv2d) and own.out_channels == 8:
            assert torch.equal(own.weight != 0, other.weight != 0)  # type: ignore[operator, arg-type]
            assert not torch.equal(own.weight, other.weight)  # type: ignore[arg-type]
            assert (own.weight != 0).float().mean().item() == pytest.approx(0.5, abs=1e-6)
            sparse += 1
    assert sparse == 3  # the two convolutions of the deepest unit, and the one around them


def test_a_network_of_all_connections_is_the_network() -> None:
    torch.manual_seed(0)
    plain = unet_small(TASK, channels=(4, 8)).eval()
    torch.manual_seed(0)
    whole: SegModel = build(f"scale_free({SMALL_NET}, density=1.0)", "model")(TASK).eval()
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(plain(x), whole(x))


def test_connections_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(InputError, match="expected 0 < density <= 1 and exponent > 2 for scale_free, got 0 and 3"):
        build("scale_free(unet_small, density=0.0)", "model")(TASK)
    one = lambda task: SegModel(nn.Conv2d(1, 1, 3), Task("one", ("organ",)))  # noqa: E731
    with pytest.raises(InputError, match="expected a network with convolutions between several channels"):
        scale_free(TASK, one)


def test_patterns_say_which_neighbours_are_as_bright() -> None:
    """Bits go around from the upper left; all are set where nothing differs, none at a peak."""
    image = torch.zeros(1, 1, 5, 5)
    patterns = Patterns()
    assert torch.equal(patterns(image), torch.ones_like(image))
    image[0, 0, 2, 2] = 0.5
    assert patterns(image)[0, 0, 2, 2] == 0
    image[0, 0, 1, 1], image[0, 0, 2, 3] = 0.5, 0.6  # bits 0 and 3
    assert patterns(image)[0, 0, 2, 2].item() == pytest.approx((1 + 8) / 255)
    scan = torch.rand(2, 1, 3, 6, 5)
    assert torch.equal(patterns(scan)[:, :, 1], patterns(scan[:, :, 1]))


def test_the_edge_of_a_ramp_is_its_slope() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    ramp = (0.03 * rows + 0.04 * columns)[None, None]
    torch.testing.assert_close(edges(ramp)[..., 1:-1, 1:-1], torch.full((1, 1, 4, 5), 0.05))
    assert torch.equal(edges(torch.ones(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


def test_patterns_have_a_gradient_for_an_attack_that_knows_them_alone() -> None:
    model: SegModel = build(f"feature_fusion({SMALL_NET})", "model")(TASK).eval()
    assert model.blocks_gradient
    patterns = model.net.patterns  # type: ignore[union-attr]
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not patterns(x).requires_grad  # type: ignore[operator]
    with backward_through("adapted"):
        out = patterns(x)  # type: ignore[operator]
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, patterns(x))  # type: ignore[operator]
    assert (grad != 0).all()


def test_hand_made_features_reach_the_answer_once_their_mix_is_learned(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, model=f"feature_fusion({SMALL_NET})", epochs=1, batch_size=2)
    trained(tmp_path / "model", FEW, options)
    model = load(tmp_path / "model")
    assert read_card(tmp_path / "model")["blocks_gradient"]
    image = FEW.read(FEW.refs("val")[0]).image[None]
    with torch.no_grad():
        answer = model(image)
        for name, weight in model.named_parameters():
            if ".mix." in name:
                assert weight.abs().max() > 0
                weight.zero_()
        assert not torch.equal(model(image), answer)
    with pytest.raises(InputError, match="expected a network with convolutions among its layers for feature_fusion"):
        feature_fusion(TASK, lambda task: SegModel(nn.Conv2d(1, 2, 1), task))


def test_hand_made_features_are_those_of_each_window_of_a_scan() -> None:
    spec = "feature_fusion(monai(net=UNet(channels=(4, 8)), window=(8, 8, 8)))"
    model: SegModel = build(spec, "model")(TASK).eval()
    assert model.window == (8, 8, 8)
    assert torch.isfinite(model(torch.rand(1, 1, 10, 12, 9))).all()
