"""Networks with exchanged layers: what they compute, that they train, and what the attack that knows them finds."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.discs import SMALL, Discs, trained
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load, read_card
from medseg_attack.models.model_ref import resolve as model_of
from medseg_attack.models.networks.altered import average_pooling, bounded_relu
from medseg_attack.models.networks.filters import ContextEncoding, Denoising
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
    "average_pooling(smp(encoder='resnet18'))",
    "feature_denoising(smp(encoder='resnet18'))",
]


@pytest.mark.parametrize("spec", NETWORKS[:5])
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
