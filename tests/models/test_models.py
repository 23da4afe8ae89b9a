"""Models: one function from a scan to log-odds, exact about softmax, grids, and what a checkpoint holds."""

import json
import math

import pytest
import torch
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models import checkpoints
from medseg_attack.models.networks.smp import count_parameters
from medseg_attack.models.segmodel import SegModel, frozen, resized
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.registry import build
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.types import Task

ORGANS = Task("abdomen", ("large_bowel", "small_bowel", "stomach"))
HEART = Task("heart", ("background", "rv", "myocardium", "lv"), exclusive=True)
PAPER = {  # measured with segmentation-models-pytorch 0.6
    "unet": 18_438_835,
    "unet_resnext101": 95_755_699,
    "unet_efficientnet_b7": 67_095_619,
    "unetplusplus_efficientnet_b7": 68_163_843,
}


def build_model(spec="unet_small", task=ORGANS, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec, "model")(task).eval()


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Recorder(nn.Module):
    """Returns its input's first channel for every class and remembers the input."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x):
        self.net_input = x
        return x[:, :1].repeat(1, self.n_classes, *(1 for _ in x.shape[2:]))


# softmax as log-odds


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_sigmoid_of_log_odds_is_softmax_and_argmax_is_kept(scale):
    z = scale * torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_odds = softmax_log_odds(z)
    torch.testing.assert_close(log_odds.sigmoid(), z.softmax(1), rtol=1e-9, atol=1e-300)
    assert torch.equal(log_odds.argmax(1), z.argmax(1))
    assert softmax_log_odds(z.float()).isfinite().all()


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_log_probabilities_and_gradients_come_back_from_log_odds(scale):
    z = (
        scale * torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ).requires_grad_()
    log_p = nn.functional.logsigmoid(softmax_log_odds(z))
    torch.testing.assert_close(log_p, z.log_softmax(1))
    (result,) = torch.autograd.grad(log_p[:, 1].sum(), z, retain_graph=True)
    (known,) = torch.autograd.grad(z.log_softmax(1)[:, 1].sum(), z)
    torch.testing.assert_close(result, known)


def test_decide_takes_ties_as_foreground_and_one_class_of_an_exclusive_task():
    overlapping, exclusive = SegModel(nn.Identity(), ORGANS), SegModel(nn.Identity(), HEART)
    log_odds = torch.tensor([[-1.0, 0.0, 2.0]])
    assert overlapping.decide(log_odds).tolist() == [[False, True, True]]
    pred = exclusive.decide(images(2, 4, 5, 6))
    assert pred.dtype == torch.bool
    assert (pred.sum(1) == 1).all()


def test_of_equal_classes_that_exclude_each_other_the_first_is_decided_and_nan_wins():
    generator = torch.Generator().manual_seed(4)
    log_odds = torch.randint(0, 3, (2, 4, 9, 8), generator=generator).float()
    log_odds[(log_odds == 2) & (torch.rand(log_odds.shape, generator=generator) < 0.3)] = torch.nan
    winner = nn.functional.one_hot(log_odds.argmax(1), 4).movedim(-1, 1).bool()
    assert torch.equal(SegModel(nn.Identity(), HEART).decide(log_odds), winner)


# grids and channels


def test_the_network_sees_the_padded_scan_and_the_answer_is_cut_back():
    net = Recorder()
    image = images(2, 1, 13, 22)
    log_odds = SegModel(net, ORGANS, stride=8)(image)
    assert net.net_input.shape == (2, 1, 16, 24)
    assert (net.net_input[:, :, 13:] == 0).all()
    assert torch.equal(log_odds, image.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("grid", [(13, 22), (64, 31), (16, 16)])
def test_resizing_comes_back_to_the_scans_grid(grid):
    net = Recorder()
    log_odds = SegModel(net, ORGANS, size=(16, 16))(torch.full((1, 1, *grid), 0.25))
    assert net.net_input.shape == (1, 1, 16, 16)
    assert log_odds.shape == (1, 3, *grid)
    torch.testing.assert_close(log_odds, torch.full_like(log_odds, 0.25))


def test_every_pixel_counts_alike_where_the_grid_shrinks():
    """Plain interpolation to a quarter of each side sees 2 x 2 of every 4 x 4 pixels, and nothing of the others."""
    image = images(1, 1, 32, 32, dtype=torch.float64).requires_grad_()
    (weights,) = torch.autograd.grad(resized(image, (8, 8)).sum(), image)
    torch.testing.assert_close(weights[..., 8:-8, 8:-8], torch.full((1, 1, 16, 16), 1 / 16, dtype=torch.float64))
    assert (weights > 0).all()
    stripes = (torch.arange(32) % 4 == 0).double().expand(1, 1, 32, 32)
    torch.testing.assert_close(
        resized(stripes, (8, 8))[..., 1:-1], torch.full((1, 1, 8, 6), 0.25, dtype=torch.float64), atol=0.05, rtol=0
    )


def test_volumes_take_the_same_way():
    net = Recorder()
    assert SegModel(net, ORGANS, size=(8, 8, 8), dims=3)(images(1, 1, 5, 9, 10)).shape == (1, 3, 5, 9, 10)
    assert SegModel(net, ORGANS, stride=4)(images(1, 1, 5, 9, 10)).shape == (1, 3, 5, 9, 10)
    assert net.net_input.shape == (1, 1, 8, 12, 12)


def test_grey_is_repeated_and_three_channels_are_taken_as_they_are():
    net = Recorder()
    model = SegModel(net, ORGANS, in_channels=3)
    model(images(1, 1, 8, 8))
    assert torch.equal(net.net_input[:, 0], net.net_input[:, 2])
    three = images(1, 3, 8, 8)
    model(three)
    assert torch.equal(net.net_input, three)
    with pytest.raises(ValueError, match="expected an image of 1 or 3 channels for this network, got 2"):
        model(images(1, 2, 8, 8))


@pytest.mark.parametrize("spec", ["unet_small", "unet_small(size=(32, 32))", "smp(encoder='resnet18', size=(64, 64))"])
@pytest.mark.parametrize("task", [ORGANS, HEART])
def test_gradients_reach_every_part_of_an_odd_scan(spec, task):
    model = build_model(spec, task)
    image = images(2, 1, 45, 39).requires_grad_()
    with frozen(model):
        log_odds = model(image)
        (grad,) = torch.autograd.grad(log_odds.sum(), image)
    assert log_odds.shape == (2, len(task.classes), 45, 39)
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("spec", ["unet_small", "unet_small(size=(32, 32))", "oracle", "blurred_oracle"])
@pytest.mark.parametrize("task", [ORGANS, HEART])
def test_a_sample_does_not_depend_on_its_neighbours(spec, task):
    model = build_model(spec, task).double()
    image = images(3, 1, 21, 30, dtype=torch.float64)
    with frozen(model), torch.no_grad():
        torch.testing.assert_close(model(image), torch.cat([model(x[None]) for x in image]), rtol=0, atol=1e-12)


def test_frozen_puts_every_flag_back():
    model = build_model()
    model.train()
    some = next(model.parameters())
    some.requires_grad_(False)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    inside = []
    with pytest.raises(RuntimeError, match="on the way"), frozen(model):  # noqa: PT012 - what is inside is the test
        inside += [*(m.training for m in model.modules()), *(p.requires_grad for p in model.parameters())]
        raise RuntimeError("on the way")
    assert not any(inside)
    assert flags == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])


# the registered ones


def test_oracles_are_what_they_say():
    image = torch.tensor([[[[0.2, 0.5], [0.7, 1.0]]]])
    torch.testing.assert_close(build_model("oracle")(image), (10 * (image - 0.5)).expand(-1, 3, -1, -1))
    odds = build_model("oracle", Task("t", ("background", "a", "b"), exclusive=True))(image)
    torch.testing.assert_close(odds[:, 1:2].sigmoid(), (10 * (image - 0.5)).sigmoid())
    blurred = build_model("blurred_oracle")(torch.full((1, 1, 5, 5), 0.8))
    torch.testing.assert_close(blurred[:, :, 1:-1, 1:-1], torch.full((1, 3, 3, 3), 3.0))


@pytest.mark.parametrize("name", [*PAPER, "unet_small"])
def test_parameters_are_counted_without_building(name):
    assert count_parameters(name) == (PAPER | {"unet_small": 403_098})[name]


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "unet_efficientnet_b7",
        pytest.param("unet_resnext101", marks=pytest.mark.slow),
        pytest.param("unetplusplus_efficientnet_b7", marks=pytest.mark.slow),
    ],
)
def test_paper_models_run_forward_and_backward_on_a_slice(name):
    model = build_model(f"{name}(size=(64, 64))")
    image = images(1, 1, 50, 60).requires_grad_()
    with frozen(model):
        log_odds = model(image)
        (grad,) = torch.autograd.grad(log_odds.square().mean(), image)
    assert log_odds.shape == (1, 3, 50, 60)
    assert sum(p.numel() for p in model.parameters()) == PAPER[name]
    assert grad.isfinite().all()
    assert grad.abs().max() > 0
    assert build(name, "model")(ORGANS).size == (224, 224)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("smp(arch='Unett')", "unknown architecture.*'Unett'; did you mean Unet"),
        ("smp(encoder='resnet33')", "unknown encoder.*'resnet33'; did you mean resnet34"),
        ("smp(encoder='tu-resnet17')", "unknown encoder.*did you mean tu-resnet18"),
        ("unet(size=(224,))", r"expected size=\(rows, columns\)"),
        (
            "unet(encoder_weights='imagenett')",
            "expected weights that vgg13 has, got 'imagenett'; did you mean imagenet",
        ),
    ],
)
def test_what_the_library_does_not_have_is_said(spec, says):
    with pytest.raises(InputError, match=says):
        build(spec, "model")(ORGANS)


def test_weights_that_cannot_be_downloaded_are_said_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"connect this machine, .* or leave --encoder-weights out"):
        build("unet(encoder_weights='imagenet')", "model")(ORGANS)


# checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    model = build_model(task=HEART)
    checkpoints.save(folder, model, {"label": "unet_small", "spec": "unet_small"})
    return folder, model


def test_a_checkpoint_comes_back_bit_for_bit(checkpoint):
    folder, model = checkpoint
    again = checkpoints.load(folder, HEART)
    card = read_json(folder / "card.json")
    image = images(1, 1, 30, 30)
    assert not again.training
    assert torch.equal(again(image), model(image))
    assert checkpoints.fingerprint(again) == checkpoints.fingerprint(model) == card["weights_sha256"]
    assert card["task"]["classes"] == list(HEART.classes)
    assert card["n_parameters"] > 4e5
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0] or card["versions"]["torch"]
    assert checkpoints.fingerprint(build_model(task=HEART, seed=1)) != card["weights_sha256"]


def test_loading_never_downloads(tmp_path):
    model = build_model("smp(encoder='resnet18')")
    spec = "smp(encoder='resnet18', encoder_weights='imagenet')"
    checkpoints.save(tmp_path, model, {"label": "smp(encoder='resnet18')", "spec": spec})
    assert checkpoints.fingerprint(checkpoints.load(tmp_path)) == checkpoints.fingerprint(model)


def test_a_checkpoint_of_other_classes_is_refused(checkpoint):
    folder, _ = checkpoint
    says = r"was trained for \('background', 'rv'.*the data has \('large_bowel'"
    with pytest.raises(InputError, match=says):
        checkpoints.load(folder, ORGANS)


@pytest.mark.parametrize("spoil", ["cut", "text", "gone", "swapped", "pickle"])
def test_broken_weights_name_their_file(checkpoint, spoil):
    folder, _ = checkpoint
    weights = folder / "weights.safetensors"
    match spoil:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "text":
            weights.write_text("not weights")
        case "gone":
            weights.unlink()
        case "swapped":
            checkpoints.save_tensors(weights, build_model(task=HEART, seed=1).state_dict())
        case "pickle":
            torch.save({"net": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        checkpoints.load(folder)


def test_weights_of_another_architecture_are_refused(checkpoint):
    folder, _ = checkpoint
    card = read_json(folder / "card.json") | {"spec": "unet_small(channels=(8, 16, 32))"}
    write_json(folder / "card.json", card)
    with pytest.raises(InputError, match="expected weights of unet_small"):
        checkpoints.load(folder)


def test_a_folder_without_a_card_is_no_checkpoint(checkpoint, tmp_path):
    folder, _ = checkpoint
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match=r"expected a checkpoint .* got no card.json"):
        checkpoints.load(folder)
    (folder / "card.json").write_text(json.dumps({"spec": "unet_small"}))
    with pytest.raises(InputError, match="expected the field 'task'"):
        checkpoints.load(folder)


def test_a_single_class_has_no_normalised_bottleneck() -> None:
    """The small U-Net's last normalisation is over its features: of one class alone it would be of one channel."""
    model = build("unet_small(channels=(4, 8))", "model")(Task("t", ("a",)))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert min(norm.num_features for norm in norms) == 4
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_probabilities_are_as_certain_as_float32_can_tell() -> None:
    """The largest float32 below 1 is 1 - 2^-24: a probability of 1 is that certain, and 0 alike."""
    probabilities = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0]).view(1, 1, 1, 5)
    model = SegModel(nn.Identity(), Task("one", ("organ",)), head="probabilities")
    certain = 24 * math.log(2)
    expected = torch.tensor([-certain, -certain, 0.0, certain, certain])
    torch.testing.assert_close(model(probabilities).flatten(), expected, rtol=1e-5, atol=1e-6)
