"""Movement: what is carried how far, what undoes it, and what can be held to mm and degrees."""

import math

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.affine import Affine, Pose
from medseg_attack.attacks.physical.deformation import Deformation, Displacement, bent
from medseg_attack.numerics.fields import legendre, smooth, splines
from medseg_attack.numerics.flows import exponential, moved, warped
from medseg_attack.types import Adversarial, Batch, Case, Setting, Task, Window

GRIDS = [(9, 8), (5, 6, 7)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shift(grid: tuple[int, ...], by: tuple[float, ...]) -> Tensor:
    flow = torch.tensor(by, dtype=torch.float64).view(1, -1, *(1 for _ in grid))
    return flow.expand(1, len(grid), *grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_whole_pixels_are_carried_to_the_last_bit(grid: tuple[int, ...]) -> None:
    x = random(1, 2, *grid)
    by = (1, -2) if len(grid) == 2 else (0, 1, -2)
    expected = x.roll([-n for n in by], dims=list(range(2, x.ndim)))
    inner = (..., *(slice(2, -2) for _ in grid))
    assert torch.equal(warped(x, shift(grid, by))[inner], expected[inner])
    assert torch.equal(warped(x, shift(grid, (0,) * len(grid))), x)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_truth_moves_by_exactly_as_many_pixels(grid: tuple[int, ...], exclusive: bool) -> None:
    organ = torch.zeros(1, 1, *grid, dtype=torch.bool)
    organ[(..., *(slice(2, 4) for _ in grid))] = True
    target = torch.cat([~organ, organ], 1)
    result = moved(target, shift(grid, (0,) * (len(grid) - 2) + (-1, 1)), exclusive)
    rows = result[0, 1].any(-1) if len(grid) == 2 else result[0, 1].any(-1).any(0)
    columns = result[0, 1].flatten(0, -2).any(0)
    assert rows.nonzero().flatten().tolist() == [3, 4]  # looked up one row before: one row further down
    assert columns.nonzero().flatten().tolist() == [1, 2]
    assert result[0, 1].sum() == organ.sum()
    assert torch.equal(result[:, :1], ~result[:, 1:])


def test_where_classes_exclude_each_other_every_pixel_has_one_of_them() -> None:
    kinds = (3 * random(1, 1, 12, 11)).long()
    target = torch.cat([kinds == k for k in range(3)], 1)
    flow = 2 * random(1, 2, 12, 11, seed=1) - 1
    assert (moved(target, flow, exclusive=True).sum(1) == 1).all()


@pytest.mark.parametrize("grid", [(24, 20), (10, 12, 11)])
def test_a_velocity_is_undone_by_its_opposite_folds_nothing_and_goes_no_further(grid: tuple[int, ...]) -> None:
    velocity = 2 * smooth(2 * random(1, len(grid), *(4 for _ in grid)) - 1, grid)
    forth, back = exponential(velocity), exponential(-velocity)
    most = velocity.square().sum(1).sqrt().max()
    assert 0.5 < forth.square().sum(1).sqrt().max() <= most
    inner = (..., *(slice(3, -3) for _ in grid))
    assert (forth + warped(back, forth))[inner].abs().max() < 0.05
    if len(grid) == 2:
        (yy, yx), (xy, xx) = (torch.gradient(forth[0, n]) for n in (0, 1))
        assert ((1 + yy) * (1 + xx) - yx * xy).min() > 0


def test_splines_share_every_pixel_out_and_polynomials_are_legendre() -> None:
    basis = splines(30, 6)
    assert (basis >= 0).all()
    torch.testing.assert_close(basis.sum(1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(basis[0, :4], torch.tensor([1, 4, 1, 0], dtype=torch.float64) / 6)
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)
    torch.testing.assert_close(legendre(30, 4)[:, 2], (3 * x**2 - 1) / 2)
    torch.testing.assert_close(legendre(30, 4)[:, 3], (5 * x**3 - 3 * x) / 2)


def case(number: int, spacing: tuple[float, float], grid: tuple[int, int] = (20, 24)) -> Case:
    image = random(1, *grid, seed=number).float()
    target = torch.stack([image[0] > 0.5])
    return Case(f"c{number}", "v", "g", image, target, spacing, Window(0, 1))


def test_a_deformation_is_held_to_mm_of_its_own_case() -> None:
    batch = Batch.of([case(0, (1.0, 1.0)), case(1, (0.5, 2.0))])
    model = registry.build("blurred_oracle", "model")(Task("t", ("organ",))).eval()
    attack = Deformation(Displacement(2.0).bind(Setting(model.task, batch.cases)), steps=0)
    result = attack(model, batch.image, batch.target, [1, 2])
    assert result.flow is not None
    mm = result.flow * torch.tensor([[1.0, 1.0], [0.5, 2.0]])[..., None, None]
    torch.testing.assert_close(result.size, mm.square().sum(1).sqrt().flatten(1).amax(1))
    assert (result.size <= 2).all()
    assert (result.size > 0.5).all()


@pytest.mark.parametrize("grid", [(21, 25), (9, 11, 10)])
def test_a_pose_is_read_off_its_flow(grid: tuple[int, ...]) -> None:
    """Half of every bound, each alone; a flow that is not stiff is in no pose."""
    image, axes = random(1, 1, *grid), len(grid)
    turns = axes * (axes - 1) // 2
    for index, share in [(0, 0.5 / math.sqrt(turns)), (turns, 0.5), (turns + 1, 0.5 / math.sqrt(axes))]:
        numbers = torch.zeros(1, turns + 1 + axes, dtype=torch.float64)
        numbers[0, index] = 0.5
        rendered = Affine(Pose(degrees=20, shift_mm=3, scale=0.2)).render(numbers, image, 1.0)
        assert rendered.flow is not None
        assert rendered.back is not None
        assert Pose(degrees=20, shift_mm=3, scale=0.2).length(rendered.flow).item() == pytest.approx(share, abs=1e-9)
        inner = (..., *(slice(3, -3) for _ in grid))
        assert (rendered.flow + warped(rendered.back, rendered.flow))[inner].abs().max() < 1e-6
    assert Pose().length(random(1, axes, *grid)).item() == math.inf


def test_a_rotation_turns_by_its_degrees_whatever_the_spacing() -> None:
    """A quarter turn would be degenerate to bound; 30 degrees take (0, 10 mm) to (5, 8.66) mm, seen from the pixel."""
    case = Case(
        "c", "v", "g", torch.zeros(1, 41, 41), torch.zeros(1, 41, 41, dtype=torch.bool), (0.5, 1.0), Window(0, 1)
    )
    pose = Pose(degrees=30, shift_mm=1, scale=0.1).bind(Setting(Task("t", ("organ",)), (case,)))
    numbers = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    rendered = Affine(pose).render(numbers, torch.zeros(1, 1, 41, 41, dtype=torch.float64), 1.0)
    assert rendered.flow is not None
    y, x = rendered.flow[0, :, 20, 30].tolist()  # 10 mm to the right of the middle
    assert (y * 0.5, 10 + x) == pytest.approx((5.0, 8.660254), abs=1e-6)


def test_what_moves_is_refused_where_nothing_may_and_found_out() -> None:
    from medseg_attack.errors import InputError
    from medseg_attack.threat.balls.norms import Linf

    with pytest.raises(InputError, match="anatomy may move"):
        Deformation(Linf(0.1))  # type: ignore[arg-type]
    image, flow = random(2, 1, 9, 8), shift((9, 8), (0.0, 1.0)).repeat(2, 1, 1, 1)
    flow[0] = 0
    assert Linf(0.1).total_size(image, image, flow).tolist() == [0.0, math.inf]
    ball = Displacement(1.5)
    assert ball.total_size(image, image, flow).tolist() == [0.0, 1.0]
    assert ball.total_size(image + 0.01, image, flow).tolist() == [math.inf, math.inf]


def test_of_a_moved_and_an_unmoved_image_the_worse_keeps_its_own_flow() -> None:
    image, flow = random(2, 1, 9, 8), shift((9, 8), (0.0, 1.0)).repeat(2, 1, 1, 1)
    still = Adversarial(image, torch.tensor([0.1, 0.9]), torch.zeros(2))
    went = Adversarial(image, torch.tensor([0.5, 0.5]), torch.ones(2), flow)
    for both in (still | went, went | still):
        assert both.flow is not None
        assert both.flow.flatten(1).any(1).tolist() == [True, False]


def test_a_velocity_that_grows_with_the_place_moves_exponentially() -> None:
    """v = a (x - c) carries x to c + e^a (x - c); without composing steps it would be a (x - c)."""
    place = torch.arange(21, dtype=torch.float64) - 10
    velocity = torch.zeros(1, 2, 5, 21, dtype=torch.float64)
    velocity[:, 1] = 0.2 * place
    inner = exponential(velocity)[0, 1, 2, 5:-5]
    torch.testing.assert_close(inner, math.expm1(0.2) * place[5:-5], atol=0.01, rtol=0)


def test_the_objective_of_a_moved_image_is_that_of_the_organ_where_it_was() -> None:
    """For a model that looks at single pixels and an organ inside of a flat ground, a shift by whole pixels is free."""
    from medseg_attack.attacks.physical.ascent import carried_back
    from medseg_attack.threat.objectives.losses import bce

    image = torch.full((1, 1, 12, 11), 0.3, dtype=torch.float64)
    image[..., 4:7, 4:8] = 0.8
    model = registry.build("oracle", "model")(Task("t", ("organ",))).double().eval()
    forth, back = shift((12, 11), (2.0, -1.0)), shift((12, 11), (-2.0, 1.0))
    carried = carried_back(model(warped(image, forth)), back)
    torch.testing.assert_close(bce(carried, image > 0.5), bce(model(image), image > 0.5))
    assert bce(model(warped(image, forth)), image > 0.5) > 2 * bce(carried, image > 0.5)


@pytest.mark.parametrize("grid", [(20, 24), (12, 10, 14)])
def test_a_field_of_ones_moves_by_the_whole_budget_along_the_diagonal(grid: tuple[int, ...]) -> None:
    """Each axis gets its share of the length: eps / sqrt(2) in 2-D, eps / sqrt(3) in 3-D."""
    image = random(1, 1, *grid)
    flow, _ = bent(torch.ones(1, len(grid) * 4 ** len(grid)), image, Displacement(2.0), 2.0, 4)
    lengths = flow.square().sum(1).sqrt()
    middle = lengths[(0, *(n // 2 for n in grid))].item()
    assert middle == pytest.approx(2.0, rel=0.02)
    assert lengths.max().item() <= 2.0 * (1 + 1e-4)
