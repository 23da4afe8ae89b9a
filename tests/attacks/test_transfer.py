"""Surrogates: one that is the victim is white-box, several are fused as written down, none is mistaken for another."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blobs, nnunet_folder
from helpers.command import medattack
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.blackbox.ensembles import Apart, MeanLogits, MeanLoss, MeanProbabilities
from medseg_attack.attacks.blackbox.transfer import Transfer
from medseg_attack.attacks.controls.shuffled import Shuffled
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.models.voted import voted
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.flows import moved
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce, ce
from medseg_attack.types import Adversarial, Case, Model, Setting, Task, Window

LABELS = Task("labels", ("background", "a", "b"), exclusive=True)
MASKS = Task("masks", ("a", "b"))
SEEDS = [5, 6, 7]
IMAGE = torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(task: Task, seed: int, scale: float = 4.0) -> SegModel:
    """A fixed random convolution with a nonlinearity."""
    rng = torch.Generator().manual_seed(seed)
    first = torch.randn(4, 1, 3, 3, generator=rng, dtype=torch.float64)
    last = torch.randn(len(task.classes), 4, 1, 1, generator=rng, dtype=torch.float64)

    def forward(x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.nn.functional.conv2d(x - 0.5, first, padding=1))
        return scale * torch.nn.functional.conv2d(hidden, last)

    return SegModel(blobs.Apply(forward), task).eval()


def from_models(*models: Model, attack: Any = None, fuse: str = "logits") -> Transfer:
    """A transfer whose surrogates are there already."""
    transfer = Transfer(attack=attack or PGD(steps=3), fuse=fuse)
    return replace(transfer, surrogate=tuple(functools.partial(_ready, model) for model in models))


def _ready(model: Model, task: Task) -> Model:
    assert model.task == task
    return model


class Untouched(SegModel):
    """A victim that counts what it is shown and refuses to be differentiated."""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(net(task, seed).net, task)
        self.shown: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.shown.append(image.clone())
        return super().forward(image)


@pytest.mark.parametrize("task", [MASKS, LABELS])
def test_a_surrogate_with_the_victims_weights_is_white_box(task: Task) -> None:
    model, attack = net(task, 0), PGD(steps=4, restarts=2)
    target = net(task, 9).decide(net(task, 9)(IMAGE))
    result, white = (a(model, IMAGE, target, SEEDS) for a in (from_models(model, attack=attack), attack))
    assert torch.equal(result.image, white.image)
    assert torch.equal(result.harm, white.harm)


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_the_image_does_not_depend_on_the_victim_that_sees_it_once(fuse: str) -> None:
    attack = from_models(net(MASKS, 1), net(MASKS, 2), fuse=fuse)
    victims = Untouched(MASKS, 3), Untouched(MASKS, 4)
    target = net(MASKS, 9).decide(net(MASKS, 9)(IMAGE))
    first, second = (attack(victim, IMAGE, target, SEEDS) for victim in victims)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.harm, second.harm)
    for victim in victims:
        (shown,) = victim.shown
        assert torch.equal(shown, first.image)
    metered = CountedModel(net(MASKS, 3))
    attack(metered, IMAGE, target, SEEDS)
    assert (metered.forwards, metered.backwards) == (1, 0)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("attack", ["pgd(steps=2)", "strongest(gradients=20)"])
def test_a_random_surrogate_draws_by_case_whatever_the_batch(attack: str, n: int) -> None:
    batch = blobs.batch(3)
    target = batch.target
    surrogate = functools.partial(voted, base=lambda task: net(task, 1), sigma=0.1, draws=1)
    transfer = replace(Transfer(attack=registry.build(attack, "attack")), surrogate=(surrogate,) * n)
    victim = net(blobs.TASK, 3)

    def crafted(numbers: list[int]) -> Tensor:
        setting = Setting(blobs.TASK, tuple(batch.cases[i] for i in numbers), stream="attack 0")
        seeds = [SEEDS[i] for i in numbers]
        return bind(transfer, setting)(victim, batch.image[numbers].double(), target[numbers], seeds).image

    together = crafted([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(crafted([i]), together[i : i + 1], atol=1e-9, rtol=0)


def test_a_surrogate_of_nnunet_knows_the_scans(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 8, 8, generator=rng)
    target = torch.rand(len(nnunet_folder.TASK.classes), 4, 8, 8, generator=rng) > 0.5
    case = Case("p_1", "p_1", "p", image, target, (2.0, 1.0, 1.0), Window(0, 1))
    spec = f"nnunet({str(nnunet_folder.write_folder(tmp_path))!r})"
    transfer = Transfer(registry.build(spec, "model"), PGD(Linf(0.1), steps=2))
    victim = SegModel(blobs.Apply(lambda x: x.expand(-1, len(target), -1, -1, -1)), nnunet_folder.TASK)
    bound = bind(transfer, Setting(nnunet_folder.TASK, (case,)))
    result = bound(victim, image[None], target[None], [0])
    assert (result.image != image).any()


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
@pytest.mark.parametrize("task", [MASKS, LABELS])
def test_one_model_and_the_same_twice_are_that_model(fuse: str, task: Task) -> None:
    model = net(task, 1)
    target = net(task, 9).decide(net(task, 9)(IMAGE))
    attack = PGD(steps=3, keep_worst=False)
    alone = from_models(model, attack=attack, fuse=fuse)(net(task, 3), IMAGE, target, SEEDS)
    twice = from_models(model, model, attack=attack, fuse=fuse)(net(task, 3), IMAGE, target, SEEDS)
    white = attack(model, IMAGE, target, SEEDS)
    assert torch.equal(alone.image, white.image)
    torch.testing.assert_close(twice.image, white.image, atol=1e-9, rtol=0)


def test_mean_logits_of_an_exclusive_task_are_those_before_the_softmax() -> None:
    models = net(LABELS, 1), net(LABELS, 2, scale=9.0)
    logits = torch.stack([model.net(IMAGE) for model in models]).mean(0)
    torch.testing.assert_close(torch.sigmoid(MeanLogits(models)(IMAGE)), torch.softmax(logits, 1))
    of_masks = net(MASKS, 1), net(MASKS, 2)
    torch.testing.assert_close(MeanLogits(of_masks)(IMAGE), (of_masks[0](IMAGE) + of_masks[1](IMAGE)) / 2)


@pytest.mark.parametrize("task", [MASKS, LABELS])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_mean_probabilities_stay_finite_where_both_models_are_sure(task: Task, scale: float) -> None:
    models = net(task, 1, scale), net(task, 2, scale)
    x = IMAGE.clone().requires_grad_()
    fused = MeanProbabilities(models)(x)
    expected = torch.stack([torch.sigmoid(model(IMAGE)) for model in models]).mean(0)
    torch.testing.assert_close(torch.sigmoid(fused), expected)
    (grad,) = torch.autograd.grad(fused.sum(), x)
    assert torch.isfinite(grad).all()


def test_fusing_losses_averages_gradients() -> None:
    models = net(LABELS, 1), net(LABELS, 2, scale=9.0)
    target = net(LABELS, 9).decide(net(LABELS, 9)(IMAGE))
    x = IMAGE.clone().requires_grad_()
    (fused,) = torch.autograd.grad(MeanLoss(ce, 2)(Apart(models)(x), torch.cat([target, target], 1)).sum(), x)
    each = [torch.autograd.grad(ce(model(x), target).sum(), x)[0] for model in models]
    torch.testing.assert_close(fused, (each[0] + each[1]) / 2)
    logits = torch.autograd.grad(ce(MeanLogits(models)(x), target).sum(), x)[0]
    assert not torch.allclose(fused, logits, rtol=1e-2)  # another fusion than the mean of logits


def test_a_sweep_is_what_each_budget_gets_alone() -> None:
    target = net(MASKS, 9).decide(net(MASKS, 9)(IMAGE))
    for text in ("fgsm", "pgd(steps=2)"):
        attack = from_models(net(MASKS, 1), net(MASKS, 2), attack=registry.build(text, "attack"))
        balls = [Linf(0.02), Linf(0.07)]
        for ball, result in zip(balls, attack.sweep(net(MASKS, 3), IMAGE, target, SEEDS, balls), strict=True):
            alone = registry.with_eps(attack, ball.eps)(net(MASKS, 3), IMAGE, target, SEEDS)
            assert torch.equal(result.image, alone.image)


@pytest.mark.parametrize("fuse", ["logits", "losses"])
def test_the_truth_that_an_attack_moves_goes_along(fuse: str) -> None:
    target, victim = net(MASKS, 9).decide(net(MASKS, 9)(IMAGE)), net(MASKS, 9)
    flow = torch.full((3, 2, 12, 10), 1.0, dtype=torch.float64)
    result = from_models(net(MASKS, 1), net(MASKS, 2), attack=Moved(flow=Flowing(flow)), fuse=fuse)(
        victim, IMAGE, target, SEEDS
    )
    assert result.flow is not None
    assert torch.equal(result.flow, flow)
    truth = moved(target, flow, exclusive=False)
    assert not torch.equal(truth, target)
    torch.testing.assert_close(result.harm, harm(victim.decide(victim(result.image)), truth).double())
    with pytest.raises(InputError, match="one that moves it"):
        Shuffled(Moved(flow=Flowing(flow)))(victim, IMAGE, target, SEEDS)


class Flowing:
    """A flow that is compared as an object."""

    def __init__(self, flow: Tensor) -> None:
        self.flow = flow


@dataclass(frozen=True)
class Moved:
    """An attack that says it moved anatomy."""

    flow: Flowing
    ball: Linf = Linf(0.5)
    objective: Any = bce

    def __call__(self, model: Model, image: Tensor, target: Tensor, seeds: Any) -> Adversarial:
        result = PGD(self.ball, self.objective, steps=1)(model, image, target, seeds)
        return replace(result, flow=self.flow.flow)


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.4)])
def test_shuffling_keeps_the_values_and_loses_their_places(ball: Any) -> None:
    image = 0.3 + 0.4 * IMAGE  # nothing is cut at 0 or 1
    target = net(MASKS, 9).decide(net(MASKS, 9)(image))
    attack = PGD(ball, steps=3, keep_worst=False)
    model = net(MASKS, 1)
    kept, moved = (a(model, image, target, SEEDS).image - image for a in (attack, Shuffled(attack)))
    torch.testing.assert_close(moved.flatten(1).sort(1).values, kept.flatten(1).sort(1).values)
    assert ((moved - kept).abs() > 1e-9).flatten(1).any(1).all()


def test_shuffling_takes_the_harm_away() -> None:
    """A network that has learned: what hurts it is where the change is, not how large."""
    batch, model = blobs.batch(4), blobs.healthy()
    attack = PGD(Linf(0.06), bce, steps=5)
    whole, control = (a(model, batch.image, batch.target, [1, 2, 3, 4]).harm for a in (attack, Shuffled(attack)))
    clean = registry.build("clean", "attack")(model, batch.image, batch.target, [1, 2, 3, 4]).harm
    assert (whole - clean).mean() > 5 * (control - clean).mean()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transfer(fuse='votes')", "fuse to be one of logits, probabilities, losses"),
        ("transfer(attack=clean, fuse='losses')", "attack with an objective"),
        ("transfer(attack=uap)", "needs no fit"),
        ("transfer(surrogate=3)", "a checkpoint's folder or a model, got 3"),
    ],
)
def test_what_cannot_be_transferred_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


def test_a_surrogate_is_needed() -> None:
    with pytest.raises(InputError, match="needs a surrogate"):
        Transfer()(net(MASKS, 1), IMAGE, IMAGE.expand(-1, 2, -1, -1) > 0.5, SEEDS)


# -- on the command line ---------------------------------------------------------------------------------------------


def write(folder: Path, task: Task, scale: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"unet_small(channels=({int(scale)}, 4))"
    with torch.random.fork_rng():
        torch.manual_seed(int(scale))
        checkpoints.save(folder, registry.build(spec, "model")(task), {"label": folder.name, "spec": spec})
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom, three models for it that differ, and one for other classes."""
    from medseg_attack.data.prepared.reading import open_prepared

    home = tmp_path_factory.mktemp("transfer")
    medattack("prepare", home / "scans", "--format", "phantom(patients=6, slices=3, side=32)", "--home", home)
    task = open_prepared(home / "data" / "phantom").task
    for number in (2, 3, 4):
        write(home / f"m{number}", task, number)
    write(home / "liver", Task("liver", ("liver",)), 2)
    return home


def attack(home: Path, out: Path, text: str, *more: str | Path, code: int = 0) -> Any:
    words = ["attack", "--home", home, "--attack", text, "--eps", "8/255", "--no-checks", "--no-control"]
    return medattack(*words, "--out", out, *more, code=code)


def configs(out: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(out.rglob("config.json"))]


def test_the_surrogates_weights_are_part_of_what_a_run_is(home: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "s", checkpoints.load(home / "m3").task, 3)
    text = f"transfer(surrogate='{other}', attack=fgsm)"
    attack(home, tmp_path / "out", text, "--model", home / "m2")
    sha = checkpoints.read_card(other)["weights_sha256"]
    assert sha[:12] in configs(tmp_path / "out")[0]["attack"]
    assert sha[:12] in json.loads((tmp_path / "out" / "identity.json").read_text())["surrogates"][0]
    attack(home, tmp_path / "out", text, "--model", home / "m2")  # and again: nothing to do
    write(other, checkpoints.load(home / "m3").task, 4)  # trained again, in the same place
    refused = attack(home, tmp_path / "out", text, "--model", home / "m2", code=2)
    assert "surrogates" in refused.stderr
    assert checkpoints.read_card(other)["weights_sha256"] != sha


def test_each_model_is_left_out_in_turn(home: Path, tmp_path: Path) -> None:
    models = [word for n in (2, 3, 4) for word in ("--model", home / f"m{n}")]
    attack(home, tmp_path / "out", "transfer(surrogate=others, attack=fgsm)", *models)
    weights = {checkpoints.read_card(home / f"m{n}")["weights_sha256"] for n in (2, 3, 4)}
    assert {config["weights"] for config in configs(tmp_path / "out")} == weights
    for config in configs(tmp_path / "out"):
        assert config["weights"][:12] not in config["attack"]
        assert all(sha[:12] in config["attack"] for sha in weights - {config["weights"]})
    alone = attack(home, tmp_path / "b", "transfer(surrogate=others)", "--model", home / "m2", code=2)
    assert "repeat --model" in " ".join(alone.stderr.split())


def test_bad_surrogates_are_refused_in_one_sentence(home: Path, tmp_path: Path) -> None:
    for name, message in (("liver", "was trained for ('liver',)"), ("absent", "expected a checkpoint")):
        text = f"transfer(surrogate='{home / name}', attack=fgsm)"
        refused = attack(home, tmp_path / "out", text, "--model", home / "m2", code=2)
        assert message in " ".join(refused.stderr.split())
        assert not (tmp_path / "out").exists()


def test_an_ensemble_on_its_own_member_hurts_more_than_its_shuffled_change(home: Path, tmp_path: Path) -> None:
    """Through files and stored levels, end to end; the rows carry one query per case and no gradient."""
    surrogate = f"surrogate=('{home / 'm2'}', '{home / 'm3'}'), attack=pgd(objective=margin, steps=4)"
    texts = f"transfer({surrogate})", f"shuffled(transfer({surrogate}))"
    content = attack(home, tmp_path / "out", texts[0], "--attack", texts[1], "--model", home / "m2", "--json")
    runs = json.loads(content.stdout)["runs"]
    assert [run["backwards"] for run in runs] == [0, 0]
    assert [run["forwards"] for run in runs] == [1, 2]


def test_ls_lists_models_that_can_be_trained(home: Path) -> None:
    listed = {row["name"] for row in json.loads(medattack("ls", "models", "--json").stdout)}
    assert "unet_small" in listed
    assert not listed & {"checkpoint", "others"}
    refused = medattack("train", "--home", home, "--model", f"checkpoint('{home / 'm2'}')", code=2)
    assert "start from it by --init" in " ".join(refused.stderr.split())
