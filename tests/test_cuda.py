"""What is registered answers on a GPU as on the CPU: `pytest -m gpu -n 0` on a machine that has one.

`MEDATTACK_TEST_DEVICE=cpu` runs the same lines without a GPU, to see that the tests themselves are right.
"""

import copy
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import blobs
from helpers.certified import build as build_certificate
from helpers.certified import model_of, radii_of, scan_of
from helpers.command import medattack
from helpers.detectors import of_own_patients, scores, training
from helpers.nnunet_folder import TASK as NNUNET_TASK
from helpers.nnunet_folder import write_folder
from test_contracts import ATTACKS, SPECS, Net, channels_of
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.physical.ascent import Parametrised
from medseg_attack.detectors.base import Training
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.reading import read_runs
from medseg_attack.runtime import deterministic, memory_mb, peak_mb, pick_device
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Case, Fittable, Setting, Task, Window

pytestmark = pytest.mark.gpu

TASK = Task("cuda", ("a", "b"))
ONE = Task("cuda", ("background", "a", "b"), exclusive=True)
EPS = 8 / 255
DETECTORS = [name for name in registry.names("detector") if name != "saved"]
SHORT_DETECTORS = {
    "spatial_consistency": "spatial_consistency(pairs=4)",
    "isolation_forest": "isolation_forest(trees=10)",
}
FEW = {"steps": 4, "searches": 2, "queries": 12}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def device() -> torch.device:
    text = os.environ.get("MEDATTACK_TEST_DEVICE", "cuda")
    if text == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return pick_device(text)


@pytest.fixture(autouse=True)
def full_precision(device: torch.device) -> Iterator[None]:
    with deterministic(device):
        yield


def built(name: str, model: SegModel, batches: list[Batch]) -> Attack:
    """The attack as the contract tests run it, learned on the device of the batches."""
    short = {} if name in SPECS else FEW
    attack: Attack = registry.with_eps(registry.build(SPECS.get(name, name), "attack", short), EPS)
    setting = Setting(model.task, batches[0].cases)
    attack = bind(attack, setting)
    return attack.with_learned(attack.fit(model, batches, seed=0)) if isinstance(attack, Fittable) else attack


def cases_of_noise(n: int, dtype: torch.dtype = torch.float64) -> list[Case]:
    draw = torch.Generator().manual_seed(8)
    return [
        Case(
            f"c{i}",
            f"v{i}",
            f"p{i}",
            torch.rand(1, 12, 10, generator=draw).to(dtype),
            torch.rand(2, 12, 10, generator=draw) < 0.4,
            (1.0, 1.0),
            Window(0, 1),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_the_same_image_on_both_devices(name: str, device: torch.device) -> None:
    """In float64, where the last bit of a sum decides no sign."""
    cases = cases_of_noise(4)
    results = {}
    for where in (CPU, device):
        torch.manual_seed(7)
        model = SegModel(Net(channels_of(name), 2), TASK, in_channels=channels_of(name)).double().to(where)
        with frozen(model):
            batch = Batch.of(cases, where)
            attack = built(name, model, [batch])
            results[where.type] = attack(model, batch.image, batch.target, [11, 12, 13, 14])
            assert results[where.type].image.device.type == where.type
    ours, theirs = results["cpu"], results[device.type]
    torch.testing.assert_close(theirs.harm.cpu(), ours.harm, atol=1e-9, rtol=0)
    torch.testing.assert_close(theirs.size.cpu(), ours.size, atol=1e-6, rtol=1e-6)
    if not isinstance(attack, Parametrised):  # poses of one harm are a tie
        torch.testing.assert_close(theirs.image.cpu(), ours.image, atol=1e-6, rtol=0)


def mean_dice(rows: Sequence[Any]) -> list[float]:
    """Of clean and of attacked images, over cases and classes; 1 where both masks are empty."""
    clean = [(2 * row.hit_clean, row.n_target + row.n_clean) for row in rows]
    adv = [(2 * row.hit_adv, row.n_target_adv + row.n_adv) for row in rows]
    return [float(np.mean([hits / pixels if pixels else 1.0 for hits, pixels in pairs])) for pairs in (clean, adv)]


@pytest.mark.parametrize("name", ATTACKS)
def test_the_loop_scores_the_same_dice_on_both_devices(name: str, device: torch.device) -> None:
    """In float32, on a trained network, with the measures of surfaces; mean Dice within 1e-3 as the loop writes it.

    The network of `bf16` has 8 bits, which the devices round in another order.
    """
    within = 5e-3 if name == "bf16" else 1e-3
    metrics = {name: registry.build(name, "metric") for name in registry.names("metric")}
    means = {}
    for where in (CPU, device):
        model = SegModel(copy.deepcopy(blobs.healthy_net()), blobs.TASK, in_channels=channels_of(name))
        if channels_of(name) > 1:
            torch.manual_seed(3)
            model.net = Net(channels_of(name), 2)
        model.to(where)
        cases = [blobs.case(1000 + i) for i in range(6)]
        with frozen(model):
            batches = [Batch.of(cases[:4], where), Batch.of(cases[4:], where)]
            attack = built(name, model, [Batch.of([blobs.case(2000 + i) for i in range(4)], where)])
            (result,) = attack_chunk(model, batches, [attack], metrics=metrics, keep_images=True)
        means[where.type] = mean_dice(result.rows)
        assert all(image.device.type == "cpu" for image in result.images)
    assert means[device.type] == pytest.approx(means["cpu"], abs=within)


@pytest.mark.parametrize("text", ["noise", "noise(linf(0.1), draw='uniform')", "noise(l2(0.5))", "shuffled", "rician"])
def test_random_draws_are_the_same_numbers_on_both_devices(text: str, device: torch.device) -> None:
    cases = cases_of_noise(3)
    images = []
    for where in (CPU, device):
        torch.manual_seed(7)
        model = SegModel(Net(1, 2), TASK).double().to(where)
        batch = Batch.of(cases, where)
        with frozen(model):
            attack = registry.build(text, "attack")
            images.append(attack(model, batch.image, batch.target, [1, 2, 3]).image.cpu())
    torch.testing.assert_close(images[1], images[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [n for n in registry.names("objective") if n != "toward"])
def test_an_objective_and_its_gradient_are_the_same(name: str, device: torch.device) -> None:
    objective = registry.build(name, "objective")
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 3, 6, 5, generator=draw, dtype=torch.float64)
    target = torch.rand(2, 3, 6, 5, generator=draw) < 0.4
    if registry.find(name, "objective").exclusive:
        target = nn.functional.one_hot(target.long().argmax(1), 3).movedim(-1, 1).bool()
    values = []
    for where in (CPU, device):
        z = logits.to(where).requires_grad_()
        value = objective(z, target.to(where), 0.5)
        values.append((value.detach().cpu(), torch.autograd.grad(value.sum(), z)[0].cpu()))
    torch.testing.assert_close(values[1], values[0], atol=1e-9, rtol=1e-9)


BALLS = [name for name in registry.names("ball") if name not in ("within", "channels")]


@pytest.mark.parametrize("text", [*BALLS, "within(l2(0.4))", "channels(l2(0.4), channels=(0,))"])
def test_a_ball_projects_to_the_same_image(text: str, device: torch.device) -> None:
    cases = cases_of_noise(3)
    draw = torch.Generator().manual_seed(4)
    grad = torch.randn(3, 1, 12, 10, generator=draw, dtype=torch.float64)
    results = []
    for where in (CPU, device):
        batch = Batch.of(cases, where)
        ball = bind(registry.build(text, "ball"), Setting(TASK, batch.cases))
        x = ball.sample(batch.image, [1, 2, 3])
        x = ball.project(x + 3 * ball.step(grad.to(where), x), batch.image)
        size = ball.size(x, batch.image).cpu()
        results.append((size, size if text == "area" else x.cpu()))  # which pixels of a tie it keeps is left open
    torch.testing.assert_close(results[1], results[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("task", [TASK, ONE], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize(
    "text", ["erase", "erase('a')", "grow(1)", "shrink(1)", "shift(dx_mm=2)", "swap('a', 'b')", "all_background"]
)
def test_a_goal_is_the_same_mask(text: str, task: Task, device: torch.device) -> None:
    draw = torch.Generator().manual_seed(2)
    target = torch.rand(3, len(task.classes), 9, 8, generator=draw) < 0.4
    if task.exclusive:
        target = nn.functional.one_hot(target.long().argmax(1), 3).movedim(-1, 1).bool()
    cases = tuple(
        Case(f"c{i}", f"v{i}", f"p{i}", torch.zeros(1, 9, 8), target[i], (1.0, 1.5), Window(0, 1)) for i in range(3)
    )
    masks = []
    for where in (CPU, device):
        goal = bind(registry.build(text, "goal"), Setting(task, cases))
        masks.append(goal(target.to(where)).cpu())
        for name in registry.names("criterion"):
            criterion = registry.build(name, "criterion")
            assert criterion.away(target.to(where), ~target.to(where), task).device.type == where.type
    assert torch.equal(*masks)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_fits_and_scores_alike(name: str, device: torch.device) -> None:
    results = []
    for where in (CPU, device):
        detector = registry.build(SHORT_DETECTORS.get(name, name), "detector")
        known, new = (of_own_patients(blobs.batch(n, start)).cases for n, start in ((24, 2000), (4, 2050)))
        with frozen(copy.deepcopy(blobs.healthy()).to(where)) as model:
            learned_from = training(detector, model, Batch.of(known, where))
            parts = [part if part is None else part.cpu() for part in (learned_from.noisy, learned_from.attacked)]
            detector = detector.fitted(Training(learned_from.clean.cpu(), known, *parts))
            results.append(scores(detector, model, Batch.of(new, where).image, new).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-3)  # trees and machines fit float32


@pytest.mark.parametrize("name", registry.names("certificate"))
def test_a_certificate_has_the_same_bounds(name: str, device: torch.device) -> None:
    certificate, radii, results = build_certificate(name), radii_of(name), []
    for where in (CPU, device):
        with frozen(copy.deepcopy(model_of(name)).to(where)) as model:
            batch = Batch.of(scan_of(name).cases, where)
            bounds = certificate.bounds(certificate.observe(model, batch, radii, 1, 32), batch, model, radii)
        results.append([(bound.cls, bound.low, bound.value, bound.high) for bound in bounds])
    for ours, theirs in zip(*results, strict=True):
        assert theirs[0] == ours[0]
        assert theirs[1:] == pytest.approx(ours[1:], rel=1e-3, abs=1e-3, nan_ok=True)


NETWORKS = [f"monai({name}, dims=2, window=(64, 64))" for name in registry.names("network")]
PAPER = ["unet", "unet_resnext101", "unet_efficientnet_b7", "unetplusplus_efficientnet_b7"]


@pytest.mark.parametrize(
    "text", [*PAPER, "unet_small", "smp(encoder='resnet18')", "oracle", "blurred_oracle", *NETWORKS, "monai(UNet)"]
)
def test_a_model_gives_the_same_log_odds_and_gradient(text: str, device: torch.device) -> None:
    """Log-odds within 1e-3 of the largest: kernels of float32 add in another order.

    The gradient is compared in float64: where float32 decides another maximum of a pool, it jumps.
    """
    outputs: list[list[torch.Tensor]] = [[], []]
    for (where, of_device), dtype in itertools.product(
        zip((CPU, device), outputs, strict=True), (torch.float32, torch.float64)
    ):
        torch.manual_seed(0)
        model = registry.build(text, "model")(TASK).to(where, dtype)
        sides = (32, 32, 32) if model.dims == 3 else (64, 64)
        image = torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(0)).to(where, dtype).requires_grad_()
        with frozen(model):
            log_odds = model(image)
            of_device.append(log_odds.detach().cpu())
            if dtype == torch.float64:
                of_device.append(torch.autograd.grad(log_odds.sigmoid().sum(), image)[0].cpu())
    for ours, theirs in zip(*outputs, strict=True):
        share = 1e-3 if ours.dtype == torch.float32 else 1e-7
        torch.testing.assert_close(theirs, ours, atol=share * ours.abs().max().item(), rtol=0)


@pytest.mark.parametrize("text", ["pgd(steps=3)", "deformation(steps=3)", "bias_field(steps=3)", "uap(epochs=1)"])
def test_scans_through_windows_are_attacked_alike(text: str, device: torch.device) -> None:
    draw = torch.Generator().manual_seed(5)
    cases = [
        Case(
            f"c{i}",
            f"c{i}",
            f"p{i}",
            torch.rand(1, 20, 24, 22, generator=draw),
            torch.rand(2, 20, 24, 22, generator=draw) < 0.3,
            (2.0, 1.0, 1.0),
            Window(0, 1),
        )
        for i in range(2)
    ]
    means = []
    for where in (CPU, device):
        torch.manual_seed(0)
        model = registry.build("monai(UNet, window=(16, 16, 16))", "model")(TASK).to(where)
        with frozen(model):
            batches = [Batch.of(cases, where)]
            attack = registry.build(text, "attack")
            attack = bind(attack, Setting(TASK, batches[0].cases))
            if isinstance(attack, Fittable):
                attack = attack.with_learned(attack.fit(model, batches, seed=0))
            (result,) = attack_chunk(model, batches, [attack])
        means.append(mean_dice(result.rows))
    assert means[1] == pytest.approx(means[0], abs=1e-3)


def test_harm_of_masks_is_the_same(device: torch.device) -> None:
    draw = torch.Generator().manual_seed(6)
    pred, target = (torch.rand(2, 4, 3, 9, 8, generator=draw) < 0.4).unbind(0)
    torch.testing.assert_close(harm(pred.to(device), target.to(device)).cpu(), harm(pred, target))


def test_memory_is_counted(device: torch.device) -> None:
    mb = memory_mb(lambda: torch.zeros(64, 1024, 256, device=device), device)
    assert mb > 50
    assert peak_mb(device) > 50


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Path:
    """Phantom scans and a network that was trained on the device, in mixed precision where it has that."""
    root = tmp_path_factory.mktemp("cuda")
    medattack("prepare", root / "scans", "--format", "phantom(patients=10)", "--out", root / "data")
    train = ("train", "--data", root / "data", "--model", "unet_small", "--lr", "3e-3", "--out", root / "model")
    medattack(*train, "--epochs", 3, "--device", device)
    return root


def dice_of(home: Path, device: torch.device, attack: str) -> list[float]:
    runs = home / f"runs-{attack}-{device.type}"
    where = ("--data", home / "data", "--model", home / "model", "--device", device, "--out", runs)
    medattack("attack", *where, "--attack", attack, "--eps", 0.01, "--limit", 12)
    rows = read_runs([path.parent for path in runs.rglob("run.json")], allow_partial=True)
    return mean_dice(list(rows.itertuples()))


@pytest.mark.parametrize("attack", ["fgsm", "pgd(steps=5)", "strongest", "bias_field(steps=5)", "square(queries=20)"])
def test_the_command_line_gives_the_same_table(home: Path, device: torch.device, attack: str) -> None:
    ours, theirs = (dice_of(home, where, attack) for where in (CPU, device))
    assert theirs == pytest.approx(ours, abs=1e-3)


def test_doctor_runs(home: Path, device: torch.device) -> None:
    medattack("doctor", "--data", home / "data", "--model", home / "model", "--device", device)


def test_nnunet_answers_alike(tmp_path: Path, device: torch.device) -> None:
    """Its resampling, normalisation and mirrored windows, in float32."""
    folder = write_folder(tmp_path)
    draw = torch.Generator().manual_seed(5)
    image, target = torch.rand(1, 9, 12, 10, generator=draw), torch.rand(3, 9, 12, 10, generator=draw) < 0.3
    case = Case("c", "c", "p", image, target, (2.0, 1.0, 1.0), Window(0, 1))
    outputs = []
    for where in (CPU, device):
        model = registry.build(f"nnunet({str(folder)!r})", "model")(NNUNET_TASK).to(where)
        with frozen(model):
            x = image[None].to(where).requires_grad_()
            log_odds = bind(model, Setting(NNUNET_TASK, (case,)))(x)
            first = log_odds[:, 0].sigmoid().sum()  # those of all classes add up to 1, whatever the image
            outputs.append((log_odds.detach().cpu(), torch.autograd.grad(first, x)[0].cpu()))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-3 * ours.abs().max().item(), rtol=0)


def test_onnx_answers_tensors_of_the_device(tmp_path: Path, device: torch.device) -> None:
    file = tmp_path / "net.onnx"
    with warnings.catch_warnings(action="ignore"):  # the exporter without onnxscript is the older one
        torch.onnx.export(nn.Conv2d(1, 2, 3, padding=1), (torch.zeros(1, 1, 8, 8),), file, dynamo=False)
    model = registry.build(f"own({str(file)!r})", "model")(TASK).to(device)
    with frozen(model):
        assert model(torch.rand(1, 1, 8, 8, device=device)).device.type == device.type
