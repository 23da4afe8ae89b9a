"""One perturbation for all: the same bits on each image, learned on some patients, scored on others, learned once."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import blobs
from helpers.command import medattack
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.controls.shuffled import Shuffled
from medseg_attack.attacks.universal.gaussian import GaussianUAP
from medseg_attack.attacks.universal.uap import UAP, Universal, placed, uap_metzen
from medseg_attack.errors import InputError
from medseg_attack.evaluation.fitting import fit_parts, must_fit
from medseg_attack.metrics.harm import harm
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.balls.channels import Channels
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.goals.stored import AnotherPatient
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.types import Batch, Case, Donors, Fittable, LogOdds, Mask, PerSample, Task, Window

ONE = Task("one", ("organ",))
EPS = 0.06


def cases(images: Tensor, targets: Tensor) -> list[Case]:
    return [
        Case(str(n), str(n), str(n), image, target, (1.0, 1.0), Window(0, 1))
        for n, (image, target) in enumerate(zip(images, targets, strict=True))
    ]


def oracle(name: str = "oracle") -> SegModel:
    model: SegModel = registry.build(name, "model")(ONE).double().eval()
    return model


def bright(*grid: int, n: int = 4) -> Batch:
    """Images that are organ everywhere: what hurts most is to darken them all."""
    rng = torch.Generator().manual_seed(0)
    images = 0.5 + 0.2 * torch.rand(n, 1, *grid, generator=rng, dtype=torch.float64)
    return Batch.of(cases(images, images >= 0.5))


@pytest.mark.parametrize("onto", ["resize", "tile"])
def test_on_a_linear_model_the_optimum_is_learned(onto: str) -> None:
    attack = UAP(Linf(EPS), margin, epochs=3, step_size=0.5, onto=onto)
    change = attack.fit(oracle(), [bright(6, 5), bright(6, 5)], 0)["change"]
    torch.testing.assert_close(change, torch.full((1, 1, 6, 5), -EPS, dtype=torch.float64))
    batch = bright(6, 5, n=3)
    result = attack.with_learned({"change": change})(oracle(), batch.image, batch.target, [1, 2, 3])
    flipped = oracle().decide(oracle()(result.image)) != batch.target
    assert torch.equal(flipped, batch.image - 0.5 < EPS)


def test_on_a_linear_model_the_optimum_of_a_length_is_learned_from_no_change_on() -> None:
    change = UAP(L2(0.3), margin, epochs=3, step_size=0.5).fit(oracle(), [bright(6, 5), bright(6, 5)], 0)["change"]
    torch.testing.assert_close(change, torch.full((1, 1, 6, 5), -0.3 / 30**0.5, dtype=torch.float64))


def test_each_image_gets_the_same_bits_where_nothing_is_cut() -> None:
    image = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)
    change = 0.05 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for attack in (Universal(Linf(0.2), "resize", change, bce), GaussianUAP(Linf(0.2))):
        moved = attack(oracle(), image, image >= 0.5, [1, 2, 3]).image - image
        assert torch.equal(moved, moved[:1].expand_as(moved))
        assert moved.abs().sum() > 0
    other = attack(oracle(), image, image >= 0.5, [7, 8, 9]).image - image
    assert torch.equal(other, moved)  # no seed of a case has a say in it


def test_a_whole_epoch_is_one_step() -> None:
    batches = [bright(6, 5), bright(6, 5)]
    metzen = uap_metzen(Linf(EPS), margin, epochs=1).fit(oracle(), batches, 0)["change"]
    torch.testing.assert_close(metzen, torch.full_like(metzen, -EPS / 10))
    often = UAP(Linf(EPS), margin, epochs=1, step_size=0.1, momentum=0.0).fit(oracle(), batches, 0)["change"]
    torch.testing.assert_close(often, torch.full_like(often, -2 * EPS / 10))


@pytest.mark.parametrize(("onto", "grid"), [("resize", (9, 7)), ("tile", (9, 7)), ("tile", (2, 3))])
def test_the_gradient_goes_back_through_tiles_and_stretching(onto: str, grid: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    change, weights = (torch.randn(1, 1, *size, generator=rng, dtype=torch.float64) for size in ((4, 5), grid))
    change.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: placed(c, grid, onto) * weights, change)


def test_tiles_repeat_from_the_first_pixel_and_stretching_never_grows() -> None:
    change = torch.arange(6, dtype=torch.float64).view(1, 1, 2, 3)
    tiled = placed(change, (3, 5), "tile")
    assert tiled.tolist() == [[[[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]]]]  # one for all images of a batch
    stretched = placed(change, (7, 4), "resize")
    assert stretched.shape == (1, 1, 7, 4)
    assert 0 <= stretched.min() <= stretched.max() <= 5
    assert placed(change, (2, 3), "tile") is not None
    with pytest.raises(InputError, match="images of 2 axes"):
        placed(change, (2, 3, 4), "tile")


def test_it_is_fitted_on_the_grid_of_most_images_and_put_on_others() -> None:
    batches = [bright(6, 5, n=2), bright(8, 8, n=4)]
    for onto in ("resize", "tile"):
        attack = UAP(Linf(EPS), margin, epochs=2, step_size=0.5, onto=onto)
        change = attack.fit(oracle(), batches, 0)["change"]
        assert change.shape == (1, 1, 8, 8)
        result = attack.with_learned({"change": change})(oracle(), batches[0].image, batches[0].target, [1, 2])
        assert (result.size <= EPS + 1e-12).all()
        assert (result.image < batches[0].image).all()
    assert UAP(Linf(EPS), grid=(3, 4), epochs=1).fit(oracle(), batches, 0)["change"].shape == (1, 1, 3, 4)


def learned_on_blobs(objective: Any = bce, eps: float = EPS) -> tuple[UAP, Universal]:
    attack = UAP(Linf(eps), objective, epochs=2, step_size=0.25)
    train = [Batch.of([blobs.case(8 * n + i) for i in range(8)]) for n in range(4)]
    return attack, attack.with_learned(attack.fit(blobs.healthy(), train, 0))


def test_what_is_learned_hurts_unseen_images_more_than_noise_and_than_itself_shuffled() -> None:
    _, attack = learned_on_blobs()
    batch, model, seeds = blobs.batch(24), blobs.healthy(), list(range(24))
    clean, noise, whole, shuffled = (
        a(model, batch.image, batch.target, seeds).harm.mean()
        for a in (
            registry.build("clean", "attack"),
            registry.build(f"noise(linf({EPS}))", "attack"),
            attack,
            Shuffled(attack),
        )
    )
    assert whole - clean > 2 * (noise - clean)
    assert whole - clean > 2 * (shuffled - clean)


def test_a_targeted_one_moves_unseen_images_to_the_target() -> None:
    """Everything is to be called a square: the objective ascends, so it is the likelihood of that."""

    def all_square(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        wanted = torch.zeros_like(target)
        wanted[:, 1] = True
        return -bce(log_odds, wanted)

    _, attack = learned_on_blobs(all_square, eps=0.15)
    batch, model = blobs.batch(8), blobs.healthy()
    before = model.decide(model(batch.image))[:, 1].float().mean()
    after = model.decide(model(attack(model, batch.image, batch.target, list(range(8))).image))[:, 1].float().mean()
    assert after > 2 * before


def test_the_fit_is_the_same_twice_and_changes_no_model() -> None:
    model = oracle("blurred_oracle")
    batches = [bright(6, 5), bright(8, 8), bright(6, 5)]
    rng = torch.random.get_rng_state()
    attack = UAP(Linf(EPS), epochs=2)
    first, second, other = (attack.fit(model, batches, seed)["change"] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert first.shape == other.shape
    assert torch.equal(rng, torch.random.get_rng_state())
    assert not first.requires_grad


def test_it_says_that_it_was_not_fitted() -> None:
    with pytest.raises(InputError, match="fitted first"):
        UAP()(oracle(), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool), [0])
    with pytest.raises(InputError, match="expected images to fit"):
        UAP().fit(oracle(), [], 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uap(epochs=0)", "epochs >= 1"),
        ("uap(onto='crop')", "onto to be one of resize, tile"),
        ("uap(grid=(0, 4))", "grid"),
        ("uap_gaussian(deviation=0.0)", "deviation above 0"),
        ("pgd(channels(channels=()))", "expected channels from 0"),
        ("pgd(channels(channels=(1, 1)))", "each once"),
        ("pgd(channels(channels=(0, 1), shares=(1.0,)))", "a share above 0"),
        ("pgd(channels(channels=(0,), shares=(0.0,)))", "leave a channel out"),
    ],
)
def test_bad_options_are_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


def test_parts_that_learn_are_found_at_any_depth() -> None:
    nested = Shuffled(UAP())
    assert must_fit(nested)
    assert isinstance(UAP(), Fittable)
    assert not must_fit(registry.build("pgd", "attack"))
    change = torch.zeros(1, 1, 2, 2)
    assert isinstance(fit_parts(nested, lambda part: part.with_learned({"change": change})).attack, Universal)


# -- modalities ------------------------------------------------------------------------------------------------------


class Modalities(torch.nn.Module):
    """The mean of four channels, so that each can do a quarter of the harm."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * (x.mean(1, keepdim=True) - 0.5)


FOUR = Task("four", ("organ",), channels=4)


def four() -> tuple[SegModel, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    image = 0.45 + 0.1 * torch.rand(3, 4, 8, 6, generator=rng, dtype=torch.float64)
    model = SegModel(Modalities(), FOUR).double().eval()
    return model, image, model.decide(model(image))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "noise", "uap_gaussian"])
def test_only_the_channels_that_are_attacked_move(name: str) -> None:
    model, image, target = four()
    attack = registry.build(f"{name}(channels(linf(0.04), channels=(0, 2), shares=(1.0, 0.5)))", "attack")
    moved = (attack(model, image, target, [1, 2, 3]).image - image).abs()
    assert moved[:, [1, 3]].max() == 0
    assert moved[:, 0].max() == pytest.approx(0.04)
    assert moved[:, 2].max() == pytest.approx(0.02)
    assert attack.ball.size(image + moved, image).max() <= 0.04 + 1e-12


def test_more_modalities_do_more_harm() -> None:
    """On this model the channels add up: what is flipped is exactly what lies within their sum."""
    model, image, target = four()
    far = (image.mean(1, keepdim=True) - 0.5).abs()
    harms = []
    for channels in ((0,), (0, 2), (0, 1, 2, 3)):
        result = registry.build(f"fgsm(channels(linf(0.04), channels={channels}))", "attack")(
            model, image, target, [1, 2, 3]
        )
        assert torch.equal(model.decide(model(result.image)) != target, far < 0.01 * len(channels))
        harms.append(result.harm.mean())
    assert harms[0] < harms[1] < harms[2]


def test_a_change_of_another_channel_is_outside_of_the_ball() -> None:
    ball = Channels(L2(0.5), (1,))
    image = torch.full((2, 3, 4, 4), 0.5)
    moved = image.clone()
    moved[0, 1] += 0.1
    moved[1, 0] += 0.001
    assert ball.size(moved, image).tolist() == pytest.approx([0.4, float("inf")])
    assert torch.equal(ball.project(moved, image)[1], image[1])
    assert registry.with_eps(ball, 0.1) == Channels(L2(0.1), (1,))
    sample = ball.sample(image, [1, 2])
    assert ball.size(sample, image).max() <= 0.5
    with pytest.raises(InputError, match="channels below 1"):
        ball.size(image[:, :1], image[:, :1])


# -- on the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medseg_attack.data.prepared.reading import open_prepared

    home = tmp_path_factory.mktemp("universal")
    form = "phantom(patients=7, slices=3, side=32)"
    medattack("prepare", home / "scans", "--format", form, "--test", "0.3", "--home", home)
    task = open_prepared(home / "data" / "phantom").task
    (home / "model").mkdir()
    card = {"label": "blurred_oracle", "spec": "blurred_oracle"}
    checkpoints.save(home / "model", registry.build("blurred_oracle", "model")(task), card)
    return home


def attack(home: Path, out: Path, *more: str | Path, code: int = 0) -> Any:
    words = ["attack", "--home", home, "--model", home / "model", "--attack", "uap(epochs=1, objective=margin)"]
    return medattack(*words, "--no-checks", "--no-control", "--out", out, *more, code=code)


def state(out: Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in sorted(out.rglob("*")) if file.suffix in (".safetensors", ".parquet")]
    return {str(file.relative_to(out)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_it_is_fitted_once_per_budget_kept_and_gone_on_with(home: Path, tmp_path: Path) -> None:
    out, budgets = tmp_path / "out", ("--eps", "8/255", "--eps", "16/255")
    attack(home, out, *budgets)
    first = state(out)
    learned = [name for name in first if "learned-" in name]
    assert len(learned) == 2
    sizes = {load_file(out / name)["change"].abs().max().item() for name in learned}
    assert len(sizes) == 2
    attack(home, out, *budgets)
    assert state(out) == first
    part = out / next(name for name in first if name.endswith(".parquet"))
    rows = pd.read_parquet(part)
    part.unlink()  # as if killed after the fit
    attack(home, out, *budgets)
    again = state(out)
    assert again.keys() == first.keys()
    assert pd.read_parquet(part).equals(rows)
    assert {k: v for k, v in again.items() if "learned" in k} == {k: v for k, v in first.items() if "learned" in k}
    for file in out.rglob("config.json"):
        assert len(json.loads(file.read_text())["fitted_on"]) == 64
    for file in out.rglob("run.json"):
        facts = json.loads(file.read_text())
        assert facts["seconds"] > facts["fit_seconds"] > 0


@pytest.mark.parametrize("goal", ["erase('stomach')", "shift(dx_mm=5)", "another_patient"])
def test_a_goal_is_learned_on_some_patients_and_scored_on_others(
    home: Path, tmp_path: Path, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks to learn by are those of patients it is fitted on; a goal in mm needs the spacing of every image."""
    asked: list[tuple[str, str]] = []

    def noted(self: AnotherPatient, case: Case, donors: Donors) -> Case:
        donor = donor_of(self, case, donors)
        asked.append((case.group, donor.group))
        return donor

    donor_of = AnotherPatient.donor_of
    monkeypatch.setattr(AnotherPatient, "donor_of", noted)
    medattack(
        "attack",
        "--home",
        home,
        "--model",
        home / "model",
        "--no-checks",
        "--no-control",
        "--eps",
        "8/255",
        "--attack",
        f"uap(epochs=1, objective=toward(bce, {goal}))",
        "--out",
        tmp_path / "out",
    )
    rows = pd.concat([pd.read_parquet(file) for file in tmp_path.rglob("*.parquet")])
    assert {"success", "n_goal"} <= set(rows.columns)
    scored = set(rows["group"])
    assert {(to in scored, by in scored) for to, by in asked} == (
        {(True, True), (False, False)} if goal == "another_patient" else set()
    )


def test_what_another_run_learned_is_refused(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    attack(home, out, "--eps", "8/255")
    (learned,) = out.rglob("learned-0.safetensors")
    content = load_file(learned)
    learned.unlink()
    save_file(content, learned, {"config": "0" * 64})
    next(out.rglob("*.parquet")).unlink()
    refused = attack(home, out, "--eps", "8/255", code=2)
    assert "what was learned for this run" in " ".join(refused.stderr.split())


def test_patients_it_is_fitted_on_and_budgets_of_several_sizes_are_refused(home: Path, tmp_path: Path) -> None:
    for more, message in (
        (("--eps", "8/255", "--split", "train"), "other patients than it is fitted on"),
        (("--eps", "8/255", "--split", "all"), "other patients than it is fitted on"),
        (("--eps", "5raw"), "one perturbation for all scans"),
    ):
        refused = attack(home, tmp_path / "out", *more, code=2)
        assert message in " ".join(refused.stderr.split())
        assert not (tmp_path / "out").exists()


def test_queries_are_shown_below_the_table(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "--model", home / "model", "--eps", "8/255", "--no-checks", "--out"]
    asked = "spsa(queries=16, directions=2, starts=1)"  # 1 + 1 and two steps of 5
    shown = " ".join(medattack(*words, tmp_path / "a", "--attack", asked, "--attack", "fgsm").stdout.split())
    assert f"Queries per case, no gradients: {asked} 12." in shown
    assert "Queries" not in medattack(*words, tmp_path / "b", "--attack", "fgsm").stdout


def test_the_plan_counts_the_fit(home: Path, tmp_path: Path) -> None:
    (run,) = json.loads(attack(home, tmp_path / "out", "--eps", "8/255", "--plan", "--json").stdout)["runs"]
    assert run["backwards"] > 0
    assert not (tmp_path / "out").exists()


def test_harm_is_that_of_the_image() -> None:
    batch = bright(6, 5)
    result = Universal(Linf(EPS), "tile", torch.full((1, 1, 2, 2), -EPS), bce)(
        oracle(), batch.image, batch.target, [1] * 4
    )
    torch.testing.assert_close(result.harm, harm(oracle().decide(oracle()(result.image)), batch.target).double())
