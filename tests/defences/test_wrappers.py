"""Models around models: what they answer, what they draw, what they refuse, and how they are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blobs
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.defences.inputs.bit_depth import BitDepth
from medseg_attack.defences.inputs.jpeg import Jpeg
from medseg_attack.defences.inputs.median import Median
from medseg_attack.defences.inputs.resize_pad import ResizePad
from medseg_attack.defences.models.ensemble import ensemble
from medseg_attack.defences.models.guarded import guarded
from medseg_attack.defences.models.noisy_features import noisy_features
from medseg_attack.defences.models.tta import tta
from medseg_attack.defences.models.voted import voted
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.model_ref import resolve
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.models.trust import code_in
from medseg_attack.storage.files import file_hash
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, Setting, Task, Window

TASK = blobs.TASK


def base(task: Task) -> SegModel:
    return blobs.healthy()


def other(task: Task) -> SegModel:
    """Another model: the healthy one with less certain answers."""
    return blobs.broken(after=lambda z: 0.3 * z - 0.2)


def exclusive(task: Task) -> SegModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SegModel(nn.Conv2d(1, 3, 3, padding=1), Task("three", ("background", "a", "b"), exclusive=True)).eval()


BUILT = {
    "guarded": lambda: guarded(TASK, base, (BitDepth(4), Median(3))),
    "guarded at random": lambda: guarded(TASK, base, (ResizePad(1.2), Jpeg(75))),
    "ensemble": lambda: ensemble(TASK, (base, other)),
    "ensemble of logits": lambda: ensemble(TASK, (base, other), fuse="logits", weights=(1.0, 3.0)),
    "ensemble of votes": lambda: ensemble(TASK, (base, other, base), fuse="votes"),
    "voted": lambda: voted(TASK, base, sigma=0.05, draws=4),
    "tta": lambda: tta(TASK, base, gammas=(1.0, 0.8)),
    "noisy features": lambda: noisy_features(TASK, base, sigma=0.05, draws=2),
    "one in another": lambda: voted(TASK, lambda task: guarded(task, base, (ResizePad(1.2),)), sigma=0.02, draws=2),
}
RANDOM = {"guarded at random", "voted", "one in another", "noisy features"}


@pytest.mark.parametrize("name", BUILT)
class TestContract:
    def test_it_says_whether_it_is_random(self, name: str) -> None:
        model, batch = BUILT[name](), blobs.batch(2)
        assert model.is_random == (name in RANDOM)
        bound = bind(model, Setting(TASK, batch.cases))
        with frozen(model), torch.no_grad():
            first, second = bound(batch.image), bound(batch.image)
        assert torch.equal(first, second) != model.is_random

    def test_the_same_cases_get_the_same_bits_again(self, name: str) -> None:
        model, batch = BUILT[name](), blobs.batch(2)
        with frozen(model), torch.no_grad():
            twice = [bind(model, Setting(TASK, batch.cases))(batch.image) for _ in range(2)]
            attacked = bind(model, Setting(TASK, batch.cases, stream="attack 0"))(batch.image)
        assert torch.equal(*twice)
        assert torch.equal(attacked, twice[0]) != model.is_random

    def test_a_batch_is_its_cases_one_by_one_pass_by_pass(self, name: str) -> None:
        model, batch = BUILT[name]().double(), blobs.batch(3)
        image = batch.image.double()
        with frozen(model), torch.no_grad():
            whole = bind(model, Setting(TASK, batch.cases))
            together = [whole(image) for _ in range(3)]
            for i in range(3):
                alone = bind(model, Setting(TASK, batch.cases[i : i + 1]))
                for answer in together:
                    assert torch.allclose(alone(image[i : i + 1])[0], answer[i], rtol=0, atol=1e-8)
        model.float()

    def test_a_part_of_the_cases_goes_on_where_the_whole_was(self, name: str) -> None:
        model, batch = BUILT[name](), blobs.batch(3)
        setting = Setting(TASK, batch.cases)
        with frozen(model), torch.no_grad():
            whole = bind(model, setting)
            whole(batch.image)
            part = bind(whole, setting.at(torch.tensor([2])))(batch.image[2:])
            again = bind(model, setting)
            again(batch.image)
            assert torch.allclose(part, again(batch.image)[2:], rtol=0, atol=1e-4)

    def test_answers_are_finite_on_the_grid_and_so_is_the_gradient(self, name: str) -> None:
        model, batch = BUILT[name](), blobs.batch(2)
        x = batch.image.clone().requires_grad_()
        for backward in ("own", "adapted", "smooth"):
            bound = bind(model, Setting(TASK, batch.cases, backward=backward))  # type: ignore[arg-type]
            log_odds = bound(x)
            assert log_odds.shape == batch.target.shape
            assert torch.isfinite(log_odds).all()
            (grad,) = torch.autograd.grad(log_odds.sum(), x, allow_unused=backward == "own")
            if backward != "own" or not model.blocks_gradient:
                assert torch.isfinite(grad).all()
                assert (grad != 0).any()

    def test_it_still_finds_the_organs(self, name: str) -> None:
        model, batch = BUILT[name](), blobs.batch(4)
        with frozen(model):
            (result,) = attack_chunk(model, [batch], [registry.build("clean", "attack")])
        dice = [2 * row.hit_clean / (row.n_target + row.n_clean) for row in result.rows]
        assert sum(dice) / len(dice) > 0.5

    def test_rows_of_a_batch_are_those_of_its_cases(self, name: str) -> None:
        """Under an attack, with the model's random numbers; another seed of the study is another attack."""
        model, batch = BUILT[name](), blobs.batch(3)
        attack = [PGD(steps=2, random_start=False)]
        with frozen(model):
            (together,) = attack_chunk(model, [batch], attack)
            alone = [attack_chunk(model, [Batch.of([case])], attack)[0] for case in batch.cases]
        harm = [row.hit_adv for row in together.rows]
        apart = [row.hit_adv for result in alone for row in result.rows]
        assert all(abs(a - b) <= 3 for a, b in zip(harm, apart, strict=True))  # float32 kernels


def test_an_ensemble_of_one_model_is_that_model() -> None:
    batch = blobs.batch(2)
    with torch.no_grad():
        assert torch.equal(ensemble(TASK, (base,))(batch.image), base(TASK)(batch.image))
        assert torch.equal(tta(TASK, base, mirror=())(batch.image), base(TASK)(batch.image))
        assert torch.equal(guarded(TASK, base)(batch.image), base(TASK)(batch.image))
        twice = ensemble(TASK, (base, base))(batch.image)
        assert torch.allclose(twice, base(TASK)(batch.image), atol=1e-4)


@pytest.mark.parametrize("model", [base, exclusive])
def test_the_gradient_of_the_mean_probability_is_the_mean_of_the_members_gradients(model: Any) -> None:
    def second(task: Task) -> SegModel:
        first = model(task)
        return SegModel(nn.Sequential(first.net, nn.Tanh()), first.task).eval()

    task = model(TASK).task
    x = blobs.batch(1).image.double().requires_grad_()
    members = [model(task).double(), second(task).double()]
    (grad,) = torch.autograd.grad(ensemble(task, (model, second)).double()(x).sigmoid().sum(), x)
    each = [torch.autograd.grad(member(x).sigmoid().sum(), x)[0] for member in members]
    assert torch.allclose(grad, sum(each) / 2, atol=1e-9)
    blobs.healthy_net().float()


def test_means_and_votes_are_those_of_the_members_weighed() -> None:
    image = blobs.batch(1).image
    with torch.no_grad():
        a, b = base(TASK)(image), other(TASK)(image)
        mean = ensemble(TASK, (base, other), weights=(3.0, 1.0))(image).sigmoid()
        assert torch.allclose(mean, 0.75 * a.sigmoid() + 0.25 * b.sigmoid(), atol=1e-5)
        logits = ensemble(TASK, (base, other), fuse="logits", weights=(3.0, 1.0))(image)
        assert torch.allclose(logits, 0.75 * a + 0.25 * b, atol=1e-4)
        votes = ensemble(TASK, (base, other, other), fuse="votes")(image) >= 0
        assert torch.equal(votes, b >= 0)  # two of three


def test_the_vote_of_noisy_copies_without_noise_is_the_model() -> None:
    image = blobs.batch(1).image
    with torch.no_grad():
        assert torch.equal(voted(TASK, base, sigma=0.0)(image) >= 0, base(TASK)(image) >= 0)


@pytest.mark.parametrize("draws", [1, 9, 25])
def test_the_spread_of_noisy_answers_falls_with_the_root_of_their_number(draws: int) -> None:
    """A model of one weight w: the standard deviation is w * sigma * that of the image, over the root of the draws."""
    task = Task("one", ("organ",))
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(net.weight, -3.0)
    image = (
        torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1, 0.1])[:, None, None, None]
    )
    for sigma in (0.0, 0.2):
        model = noisy_features(task, lambda task: SegModel(net, task), sigma=sigma, draws=draws).eval()
        with torch.no_grad():
            change = model(image) + 3 * image
        for each, spread in zip(change, image.flatten(1).std(1), strict=True):
            expected = 3 * sigma * float(spread) / draws**0.5
            assert float(each.std()) == pytest.approx(expected, rel=0.05, abs=1e-6)
            assert abs(float(each.mean())) <= expected / 20 + 1e-6


def test_exclusive_classes_stay_exclusive() -> None:
    task = exclusive(TASK).task
    image = blobs.batch(1).image
    for model in (
        ensemble(task, (exclusive, exclusive), fuse="logits"),
        tta(task, exclusive),
        voted(task, exclusive),
        noisy_features(task, exclusive),
    ):
        with torch.no_grad():
            assert torch.equal(model.decide(model(image)).sum(1), torch.ones(1, 32, 32, dtype=torch.int64))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(x)
        return logits


def volume(task: Task) -> SegModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SegModel(Volume(), TASK, dims=3, stride=4).eval()


def no_convolution(task: Task) -> SegModel:
    return SegModel(nn.BatchNorm2d(1), task)


def windowed(task: Task) -> SegModel:
    return SegModel(SlidingWindow(nn.Conv2d(1, 2, 1), (8, 8)), task)


@pytest.mark.parametrize("name", ["bit_depth", "jpeg", "median", "nlm", "tv", "pixel_deflection", "resize_pad"])
def test_whole_scans_are_guarded_too(name: str) -> None:
    model = guarded(TASK, volume, (registry.build(name, "defence"),))
    assert model.dims == 3
    image = torch.rand(1, 1, 6, 14, 12, generator=torch.Generator().manual_seed(0))
    target = torch.rand(1, 2, 6, 14, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    case = Case("v", "v", "v", image[0], target[0], (3.0, 1.0, 1.0), Window(0, 1))
    with frozen(model):
        (result,) = attack_chunk(
            model, [Batch.of([case])], [registry.build("averaged(bpda(pgd(steps=2)), passes=2)", "attack")]
        )
    assert len(result.rows) == 2


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: guarded(TASK), "expected a trained model for guarded, got nothing; write the name or folder"),
        (lambda: guarded(TASK, base, (3,)), "expected layers such as median for guarded, got 3; see"),
        (lambda: ensemble(TASK), "expected a trained model for ensemble, got nothing; "),
        (lambda: ensemble(TASK, (base, volume)), r"expected members of one task, all of 2-D cases, got .* in 3-D"),
        (lambda: ensemble(TASK, (base,), fuse="mode"), "expected fuse of ensemble among probabilities, logits, votes"),
        (lambda: ensemble(TASK, (base, other), weights=(1.0,)), "expected a weight above 0 for each of the 2 models"),
        (lambda: ensemble(TASK, (base, other), by_dice=True), "expected a checkpoint with a validation Dice for by_d"),
        (lambda: voted(TASK, base, draws=0), r"expected draws in \[1, inf\), got 0; "),
        (lambda: noisy_features(TASK, base, sigma=-1.0), r"expected sigma in \[0, inf\), got -1.0; "),
        (lambda: noisy_features(TASK, no_convolution), "expected a model with convolutions for noisy_features"),
        (lambda: noisy_features(TASK, windowed), "expected a model that sees an image at once for noisy_features"),
        (lambda: tta(TASK, base, mirror=(2,)), r"expected axes below 2 to mirror for tta, got \(2,\); "),
        (lambda: tta(TASK, base, gammas=()), r"expected gammas above 0 for tta, got \(\); "),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(build: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("guarded('a', [bit_depth(bits=3), median])", "guarded(base='a', layers=(bit_depth(bits=3), median))"),
        ("ensemble('a', 'b', 'c', fuse='votes')", "ensemble(models=('a', 'b', 'c'), fuse='votes')"),
        ("ensemble(('a', 'b'))", "ensemble(models=('a', 'b'))"),
        ("ensemble(guarded('a', [jpeg]), 'b')", "ensemble(models=(guarded(base='a', layers=(jpeg,)), 'b'))"),
        ("noisy_features('a')", "noisy_features(base='a')"),
        ("voted('a', sigma=0.3)", "voted(base='a', sigma=0.3)"),
    ],
)
def test_specs_of_models_around_models_are_read_and_written(text: str, canonical: str) -> None:
    assert registry.spec(registry.build(text, "model")) == canonical
    assert registry.spec(registry.build(canonical, "model")) == canonical


NET = """
import torch
def build(task):
    net = torch.nn.Conv2d(1, len(task.classes), 1)
    torch.nn.init.constant_(net.weight, 9.0)
    torch.nn.init.constant_(net.bias, -4.0)
    return net
"""


def test_code_in_a_model_within_is_code_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    own = f"own('{tmp_path / 'net.py'}:build')"
    quoted = own.replace("'", '"')
    for text in (f"guarded({own}, [median])", f"guarded('{quoted}', [median])", f"voted(ensemble({own}))"):
        assert [code.files for _, code in code_in(text)] == [((tmp_path / "net.py"),)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("around")
    medattack(
        "prepare",
        root / "scans",
        "--format",
        "phantom(patients=6, slices=3, side=32)",
        "--test",
        "0.5",
        "--out",
        root / "data/p",
    )
    for seed in (0, 1):
        train = ("train", "--data", root / "data/p", "--model", "unet_small", "--epochs", "1", "--seed", seed)
        medattack(*train, "--home", root, "--out", root / f"models/m{seed}")
    (root / "net.py").write_text(NET, encoding="utf-8")
    return root


def test_names_of_the_workspace_stand_within_and_tables_show_them(workspace: Path) -> None:
    from medseg_attack.evaluation.opening import find_model

    name = find_model(workspace, "guarded('unet_small', [bit_depth(bits=3)])")
    assert name == f"guarded(base='{workspace}/models/m1', layers=(bit_depth(bits=3),))"
    data = medattack("evaluate", "--help") and workspace / "data/p"
    from medseg_attack.data.prepared.reading import open_prepared

    task = open_prepared(data).task
    model_ref = resolve(name, task)
    assert model_ref.label == "guarded('unet_small', layers=(bit_depth(bits=3),))"
    assert (model_ref.is_random, model_ref.blocks_gradient) == (False, True)
    assert model_ref.base == str(workspace / "models/m1")
    same = resolve(f"guarded(base='{workspace}/models/../models/m1', layers=(bit_depth(bits=3),))", task)
    assert same.weights_hash == model_ref.weights_hash  # where the folder stands says nothing
    others = [f"guarded(base='{workspace}/models/m0', layers=(bit_depth(bits=3),))", name.replace("bits=3", "bits=4")]
    assert len({model_ref.weights_hash, *(resolve(text, task).weights_hash for text in others)}) == 3


def test_a_model_within_that_is_not_there_is_refused(workspace: Path) -> None:
    for text in ("guarded('nowhere', [median])", "guarded(unet_smal, [median])", "ensemble('unet_small', '')"):
        run = medattack("attack", "--home", workspace, "--model", text, "--limit", 1, code=2)
        assert "expected" in run.output or "unknown" in run.output
        assert "Traceback" not in run.output


def test_the_code_of_a_network_within_is_hashed(workspace: Path) -> None:
    from medseg_attack.data.prepared.reading import open_prepared

    task = open_prepared(workspace / "data/p").task
    spec = f"guarded(own('{workspace / 'net.py'}:build'), [median])"
    before = resolve(spec, task).weights_hash
    text = (workspace / "net.py").read_text(encoding="utf-8")
    (workspace / "net.py").write_text(text + "\n# another file\n", encoding="utf-8")
    assert resolve(spec, task).weights_hash != before
    (workspace / "net.py").write_text(text, encoding="utf-8")
    assert file_hash(workspace / "net.py")


def test_an_attack_on_a_guarded_model_resumes_to_the_same_rows(workspace: Path, tmp_path: Path) -> None:
    """With random numbers of the model's own; killed after a part of its chunks and without any."""
    import pandas as pd

    attack = ["attack", "--home", workspace, "--attack", "pgd(steps=2)", "--limit", 4]
    words = [*attack, "--no-checks", "--no-control", "--model"]
    model = "voted(guarded('unet_small', [resize_pad]), sigma=0.02, draws=2)"
    tables = []
    for out in ("whole", "parts"):
        medattack(*words, model, "--out", tmp_path / out, "--batch-size", 16 if out == "whole" else 1)
        parts = sorted((tmp_path / out).rglob("*.parquet"))
        if out == "parts":
            for file in parts:
                file.unlink()
            medattack(*words, model, "--out", tmp_path / out, "--batch-size", 1)
        tables.append(pd.concat([pd.read_parquet(file) for file in sorted((tmp_path / out).rglob("*.parquet"))]))
    for column in ("n_clean", "hit_clean", "n_adv", "hit_adv"):
        assert (tables[0][column].to_numpy() - tables[1][column].to_numpy()).max() <= 2, column


def test_the_fields_of_a_setting_go_to_every_model_within() -> None:
    inner = guarded(TASK, base, (BitDepth(2),))
    model = ensemble(TASK, (lambda task: inner, base))
    setting = Setting(TASK, blobs.batch(1).cases, backward="adapted")
    x = blobs.batch(1).image.clone().requires_grad_()
    (own,) = torch.autograd.grad(bind(inner, replace(setting, backward="own"))(x).sum(), x)
    (adapted,) = torch.autograd.grad(bind(model, setting).net.members[0](x).sum(), x)  # type: ignore[union-attr,operator,index]
    assert not own.any()
    assert adapted.any()
