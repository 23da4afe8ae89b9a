"""What is judged is what is written: stored values inside budget and window, and the reader's own bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.evaluation.crafting import case_budgets, craft
from medseg_attack.evaluation.loop import Result, attack_chunk
from medseg_attack.evaluation.rounding import RoundedModel
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.noise import noise_of
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.registry import build
from medseg_attack.runs.folder import RunFolder
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.types import Batch, Case, Storage, Task, Window

TYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float32]


def case(dtype: type, slope: float = 1.0, inter: float = 0.0, window: tuple[float, float] = (0, 1000)) -> Case:
    rng = np.random.default_rng(0)
    top = 255 if dtype is np.uint8 else 1200
    stored = torch.from_numpy(rng.integers(0, top, (1, 9, 7)).astype(dtype))
    low, high = window
    native = stored.numpy().astype(np.float64) * slope + inter
    image = np.clip((native - low) / (high - low), 0, 1).astype(np.float32)
    return Case(
        "c",
        "v",
        "g",
        torch.from_numpy(image),
        torch.zeros(1, 9, 7, dtype=torch.bool),
        (1.0, 1.0),
        Window(low, high),
        storage=Storage(stored, slope, inter),
    )


def levels_of(one: Case) -> StoredValues:
    values = StoredValues.of([one], "cpu")
    assert values is not None
    return values


@pytest.mark.parametrize("dtype", TYPES)
def test_the_scan_itself_is_shown_to_the_last_bit(dtype: type) -> None:
    one = case(dtype, 0.37, -5.5, (-10.0, 300.0))
    levels, image = levels_of(one), one.image[None]
    assert torch.equal(levels.image(levels.stored, image), image)
    assert torch.equal(levels.nearest(image, image, Linf(0.1)), levels.stored)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ball", [Linf(0.02), Linf(5 / 255), L2(0.3)], ids=str)
def test_whatever_is_asked_stays_in_ball_window_and_type(dtype: type, ball: Linf | L2) -> None:
    one = case(dtype, 0.5, 10.0, (50.0, 400.0))
    levels, image = levels_of(one), one.image[None]
    wish = (image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    wish = ball.project(wish, image)
    stored = levels.nearest(wish, image, ball)
    shown = levels.image(stored, image)
    assert ball.size(shown, image).item() <= ball.limit * (1 + 1e-6) + 1e-7
    assert torch.equal(stored, torch.from_numpy(stored.numpy().astype(dtype).astype(np.float64)))
    native = levels.stored * 0.5 + 10.0
    outside = (native < 50) | (native > 400)
    assert outside.any()
    assert torch.equal(stored[outside], levels.stored[outside])


@given(st.integers(1, 200), st.integers(2, 60000))
@example(70, 60000)
def test_a_budget_of_whole_levels_is_used_in_full(n: int, width: int) -> None:
    """eps = n levels must not become n - 1 because float32 rounded x + eps down."""
    stored = torch.tensor([[[width // 2]]], dtype=torch.int32)
    if n / width >= 0.4:
        return
    image = torch.tensor([[[np.float32(width // 2 / width)]]])
    one = Case("c", "v", "g", image, image > 2, (1.0, 1.0), Window(0, width), storage=Storage(stored))
    levels, x0 = levels_of(one), image[None]
    moved = levels.nearest(Linf(n / width).project(x0 + 1, x0), x0, Linf(n / width))
    assert (moved - levels.stored).item() == n


def test_a_budget_below_one_level_changes_nothing() -> None:
    one = case(np.uint8, window=(0, 255))
    levels, image = levels_of(one), one.image[None]
    ball = Linf(0.9 / 255)
    assert torch.equal(levels.nearest((image + ball.eps).clamp(0, 1), image, ball), levels.stored)


MIXED = [case(dtype, 0.5, 10.0, (50.0, 400.0)) for dtype in (np.int16, np.uint16, np.float32, np.uint8, np.float64)]


@pytest.mark.parametrize("ball", [Linf(0.02), L2(0.3)], ids=str)
def test_cases_of_several_types_are_stored_as_each_would_be_alone(ball: Linf | L2) -> None:
    both = StoredValues.of(MIXED, "cpu")
    assert both is not None
    image = torch.stack([one.image for one in MIXED])
    wish = ball.project((image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))), image)
    moved = both.warped(0.3 * torch.ones(len(MIXED), 2, 9, 7))
    files = both.files(both.nearest(wish, image, ball))
    for n, one in enumerate(MIXED):
        alone = levels_of(one)
        (known,) = alone.files(alone.nearest(wish[n : n + 1], image[n : n + 1], ball))
        assert files[n].dtype == known.dtype == one.storage.stored.dtype  # type: ignore[union-attr]
        assert torch.equal(files[n], known)
        assert not torch.equal(known, one.storage.stored)  # type: ignore[union-attr]
        assert torch.equal(moved.stored[n], alone.warped(0.3 * torch.ones(1, 2, 9, 7)).stored[0])
        picked = both.at(torch.tensor([n]))
        assert torch.equal(picked.files(picked.nearest(wish[n : n + 1], image[n : n + 1], ball))[0], known)


def test_rows_and_stored_images_of_several_types_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    cases = [replace(one, id=f"c{n}", volume=f"v{n}") for n, one in enumerate(MIXED)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SegModel(torch.nn.Conv2d(1, 1, 3, padding=1), Task("t", ("a",))).eval()
    attack = build("pgd(steps=3)", "attack", {"eps": 0.05})

    def run(attack: Any, size: int) -> Result:
        batches = [Batch.of(cases[i : i + size]) for i in range(0, len(cases), size)]
        with frozen(model):
            return attack_chunk(model, batches, [attack], keep_images=True)[0]

    alone, together = run(attack, 1), run(attack, len(cases))
    counted = [(row.case, row.n_adv, row.hit_adv, row.linf) for row in together.rows]
    assert counted == [(row.case, row.n_adv, row.hit_adv, row.linf) for row in alone.rows]
    for one, x, y in zip(cases, alone.images, together.images, strict=True):
        assert x.dtype == y.dtype == one.storage.stored.dtype  # type: ignore[union-attr]
        assert torch.equal(x, y)
    config = {"attack": registry.spec(attack), "budget": None, "weights": "w", "data": "d", "metrics": [], "seed": 0}
    folder = RunFolder.open(tmp_path / "run", config)
    folder.write_images(0, {one.id: x.numpy() for one, x in zip(cases, together.images, strict=True)})
    again = run(build(f"replay(run={str(folder.path)!r})", "attack"), len(cases))
    assert [(row.case, row.n_adv, row.hit_adv, row.linf) for row in again.rows] == counted


def test_a_model_behind_storage_sees_levels_and_passes_gradients_on() -> None:
    model = SegModel(torch.nn.Conv2d(1, 1, 1), Task("t", ("a",)))
    one = case(np.uint8, window=(0, 255))
    levels, image = levels_of(one), one.image[None]
    stored = RoundedModel(model, levels, image, Linf(8 / 255), (one,))
    between = (image + 2.6 / 255).clamp(0, 1).requires_grad_()
    rounded = levels.image(levels.nearest(between.detach(), image, Linf(8 / 255)), image)
    assert torch.equal(stored(between), model(rounded))
    assert not torch.equal(rounded, between)
    (grad,) = torch.autograd.grad(stored(between).sum(), between)
    torch.testing.assert_close(grad, torch.full_like(image, model.net.weight.item()))  # type: ignore[arg-type]


def test_small_steps_add_up_between_levels() -> None:
    """A quarter of a level four times is a level: the attack climbs in floats, only what is seen is rounded."""
    from medseg_attack.attacks.gradient.pgd import bim
    from medseg_attack.threat.objectives.losses import margin

    task = Task("t", ("a",))
    model = SegModel(torch.nn.Conv2d(1, 1, 1, bias=False), task)
    with torch.no_grad():
        model.net.weight.fill_(5.0)  # type: ignore[union-attr, operator]
    one = case(np.uint8, window=(0, 255))
    levels, image = levels_of(one), one.image[None]
    ball = Linf(1 / 255)
    stored = RoundedModel(model, levels, image, ball, (one,))
    result = bim(ball, margin, steps=4, step_size=0.25)(stored, image, image < 2, [0])
    inner = (levels.stored > 0) & (levels.stored < 255)
    assert ((levels.nearest(result.image, image, ball) - levels.stored)[inner] == -1).all()


def test_noise_is_estimated_from_the_image() -> None:
    ramp = torch.linspace(0.2, 0.8, 128).expand(2, 1, 128, 128)
    draw = torch.Generator().manual_seed(0)
    noisy = ramp + torch.tensor([0.01, 0.03]).view(2, 1, 1, 1) * torch.randn(2, 1, 128, 128, generator=draw)
    assert noise_of(noisy).tolist() == pytest.approx([0.01, 0.03], rel=0.05)
    assert noise_of(torch.zeros(1, 1, 8, 8)).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_are_rounded_towards_the_source(dtype: type) -> None:
    """A change of half a float's precision must not become a whole one: no pixel goes further than was asked."""
    rng = torch.Generator().manual_seed(0)
    stored = torch.from_numpy((900 * torch.rand(1, 40, 40, generator=rng)).numpy().astype(dtype))
    image = (stored.double() / 1000).float()
    one = Case("c", "v", "g", image, image > 2, (1.0, 1.0), Window(0, 1000), storage=Storage(stored))
    levels, x0 = levels_of(one), image[None]
    x = (x0 + 2e-3 * torch.randn(x0.shape, generator=rng)).clamp(0, 1)
    asked = (x - x0).double().abs() * 1000
    change = (levels.nearest(x, x0, Linf(0.9)) - levels.stored).abs()
    assert (change <= asked).all()
    assert (change > 0).double().mean() > 0.5


def test_a_stored_value_is_a_share_of_the_window() -> None:
    """A slope of 2 HU in a window of 400 HU is a level of 1/200, whatever the window's width."""
    for width in (400.0, 50.0):
        one = replace(case(np.int16, 2.0, 0.0, (0.0, width)), window=Window(0.0, width, "HU"))
        (budget,) = case_budgets([one], noise_of(one.image[None]), None, 0.1)
        assert budget.level == pytest.approx(2 / width)
        (negative,) = case_budgets(
            [replace(one, storage=replace(one.storage, slope=-2.0))], noise_of(one.image[None]), None
        )
        assert negative.level == budget.level
        assert (budget.budget, negative.budget) == (0.1, 0.0)
    (floats,) = case_budgets([case(np.float32)], noise_of(one.image[None]), None)
    assert floats.level == 0.0


@pytest.mark.parametrize("order", [(10, 60), (60, 10)])
def test_attacks_of_several_budgets_at_once_use_theirs_in_full(order: tuple[int, int]) -> None:
    """They see images that are rounded in the widest of their balls: in a narrower one a whole level may be lost.

    Every pixel flips at exactly 60 levels, and float32 puts each of them a little below that.
    """

    class Dark(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 100 * (level + 59.5 / 255 - x)

    eps = torch.tensor(60 / 255)
    levels = torch.arange(20, 180) / torch.tensor(255.0)
    level = next(v for v in levels if ((v + eps) - v).double() * 255 < 60)
    stored = torch.full((1, 9, 7), round(level.item() * 255), dtype=torch.uint8)
    one = replace(case(np.uint8, window=(0, 255)), image=level.expand(1, 9, 7).clone(), storage=Storage(stored))
    one = replace(one, target=torch.ones(1, 9, 7, dtype=torch.bool))
    model = SegModel(Dark(), Task("t", ("organ",))).eval()
    attacks = [build(f"pgd(linf({n}/255), steps=10)", "attack") for n in order]
    with frozen(model):
        results = attack_chunk(model, [Batch.of([one])], attacks)
    lost = {n: result.rows[0].hit_clean - result.rows[0].hit_adv for n, result in zip(order, results, strict=True)}
    assert lost == {10: 0, 60: 63}


@pytest.mark.parametrize(("attack", "is_whole"), [("pgd(linf(0.02), steps=3)", True), ("deformation(steps=3)", False)])
def test_an_attack_sees_images_that_a_file_can_hold_unless_it_moves_anatomy(attack: str, is_whole: bool) -> None:
    one, seen = replace(case(np.int16), target=torch.ones(2, 9, 7).bool()), list[Tensor]()

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(1000 * x.detach())
            return torch.cat((x - 0.3, 0.6 - x), 1)

    with frozen(SegModel(Noting(), Task("two", ("a", "b"))).eval()) as model:
        list(craft(model, Batch.of([one]), [build(attack, "attack")], [None], 0))
    fractions = torch.cat([(values - values.round()).abs() for values in seen])
    assert (fractions.max() < 1e-3) == is_whole
