"""Balls, random starts and noise: moments that can be written down, and what is harm."""

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.gradient.wang2024 import Blend
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.evaluation.outcomes import TOLERANCE
from medseg_attack.numerics.samples import widen
from medseg_attack.threat.balls.base import bounds_length, even_change, longest, scale_of, shared_out, to_edge
from medseg_attack.threat.balls.channels import Channels
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Ball, Case, Image, Model, Setting, Task, Window

BALLS = [  # with the options that change what may change
    *(name for name in registry.names("ball") if name not in ("within", "channels")),
    "quantised(block=4, planes=True)",
    "quantised(stretch=True)",
    "stops(half_width=1)",
    "area(0.1, margin=1)",
    "within(l2(0.4))",
    "within(blend(0.1))",
    "channels(l2(0.4), channels=(1,))",
    "channels(linf(0.1), channels=(0, 1), shares=(1, 0.5))",
    "channels(blend(0.1), channels=(0, 1), shares=(1, 0.5))",
]
EPS = 0.1
MANY = torch.full((64, 1, 20, 20), 0.5, dtype=torch.float64)
SEEDS = list(range(64))
SQUARE = Task("square", ("organ",))


def oracle(task: Task) -> Model:
    model: Model = registry.build("oracle", "model")(task).double().eval()
    return model


def moments(moved: Image) -> tuple[float, float, float]:
    """Mean, mean absolute and root mean square of a change of the grey images, in units of eps."""
    change = (moved - MANY) / EPS
    return change.mean().item(), change.abs().mean().item(), change.square().mean().sqrt().item()


# the standard error of any of these is below 0.007
@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        ("sign", (0.0, 1.0, 1.0)),
        ("uniform", (0.0, 1 / 2, 3**-0.5)),
        # of standard deviation 1 / sqrt(3), cut at 1: worked out from the normal distribution's density
        ("gaussian", (0.0, 0.4485, 0.5347)),
    ],
)
def test_noise_has_the_moments_of_its_name(draw: str, expected: tuple[float, float, float]) -> None:
    result = Noise(Linf(EPS), draw)(oracle(SQUARE), MANY, MANY >= 0.5, SEEDS)
    assert moments(result.image) == pytest.approx(expected, abs=0.02)


def test_random_starts_fill_the_linf_ball_evenly() -> None:
    moved = Linf(EPS).sample(MANY, SEEDS)
    assert moments(moved) == pytest.approx((0.0, 1 / 2, 3**-0.5), abs=0.02)
    quarters = torch.histc((moved - MANY) / EPS, 4, -1, 1) / MANY.numel()
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_random_starts_fill_the_l2_ball_evenly(side: int) -> None:
    """The mean radius of the ball of n dimensions is n / (n + 1), and a half of it lies beyond 2^(-1/n)."""
    n, seeds = side * side, range(1000)
    image = torch.full((1000, 1, side, side), 0.5, dtype=torch.float64)
    ball = L2(EPS)
    moved = ball.sample(image, seeds)
    radius = ball.size(moved, image) / EPS
    assert radius.mean().item() == pytest.approx(n / (n + 1), abs=0.03)
    assert (radius > 2 ** (-1 / n)).double().mean().item() == pytest.approx(0.5, abs=0.05)
    direction = (moved - image).flatten(1) / (EPS * radius[:, None])
    assert direction.mean(0).abs().max().item() < 0.1


def test_blended_starts_have_as_many_signs_of_either_kind() -> None:
    change = Blend(EPS).sample(MANY, SEEDS) - MANY
    up = torch.isclose(change, torch.tensor(EPS / 2, dtype=change.dtype))
    down = torch.isclose(change, torch.tensor(-1.5 * EPS, dtype=change.dtype))
    assert (up | down).all()
    assert up.double().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(5.0), Blend(0.3)], ids=["linf", "l2", "blend"])
def test_what_is_projected_lies_in_the_box(ball: Ball) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, 1, 6, 5, generator=generator, dtype=torch.float64)
    image[0], image[1] = 0, 1
    far = image + 2 * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    for x in (ball.project(far, image), ball.sample(image, [1, 2, 3, 4])):
        assert 0 <= x.min() <= x.max() <= 1
        assert (ball.size(x, image) <= ball.limit + 1e-12).all()
    assert (ball.project(far, image) == 0).any()


def bound(text: str, image: Image) -> Ball:
    """A ball that knows its cases: a region is the bright part of each image."""
    scans = [scan.float() for scan in image]
    grid = image.shape[2:]
    cases = [
        Case(f"c{n}", f"c{n}", f"p{n}", scan, torch.zeros(1, *grid, dtype=torch.bool), (1.5,) * len(grid), Window(0, 1))
        for n, scan in enumerate(scans)
    ]
    return bind(registry.build(text, "ball"), Setting(SQUARE, tuple(cases)))


def hard_images(grid: tuple[int, ...], channels: int, dtype: torch.dtype) -> Image:
    """A random, a black, a white and a half-black image, and one with a single pixel that is not black."""
    rng = torch.Generator().manual_seed(3)
    image = torch.rand(5, channels, *grid, generator=rng, dtype=torch.float64)
    image[1], image[2], image[3, ..., :3], image[4] = 0, 1, 0, 0
    image[4].view(-1)[7] = 0.4
    return image.to(dtype)


COUNTING = {"l0", "pixels", "area", "edit_area", "severity"}  # whose size is a number of pixels, or no size at all
STILL = {"displacement", "pose"}  # no intensity may change


@pytest.mark.parametrize("name", sorted(set(registry.names("ball")) - COUNTING - STILL))
def test_an_even_change_is_in_the_ball_and_not_nothing(name: str) -> None:
    image = 0.3 + 0.2 * torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ball = bound(name, image)
    change = even_change(ball, image)
    assert (change.flatten(1).amax(1) > 0).all()
    assert (ball.size(image + change, image) <= ball.limit * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grid", [(9, 12), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("text", BALLS)
def test_after_any_number_of_steps_what_is_projected_is_in_the_ball_and_stays(
    text: str, grid: tuple[int, ...], dtype: torch.dtype
) -> None:
    image = hard_images(grid, 2 if text.startswith("channels") else 1, dtype)
    ball = bound(text, image)
    rng = torch.Generator().manual_seed(4)
    x = ball.sample(image, range(5))
    for step in range(24):
        grad = torch.randn(image.shape, generator=rng, dtype=torch.float64).to(dtype) if step % 4 < 2 else -(1 - x)
        grad = torch.zeros_like(x) if step % 8 == 5 else grad.abs() if step % 4 == 1 else grad
        x = ball.project(x + (0.25, 1, 3)[step % 3] * ball.step(grad, x), image)
        assert 0 <= x.min() <= x.max() <= 1
        assert (ball.size(x, image) <= ball.limit * (1 + TOLERANCE) + TOLERANCE).all()
        torch.testing.assert_close(ball.project(x, image), x, rtol=0, atol=2e-7)
    assert torch.equal(ball.project(image, image), image)


@pytest.mark.parametrize("amount", [2.0, -2.0])
@pytest.mark.parametrize("text", BALLS)
def test_a_few_pixels_that_leave_the_window_are_projected_into_it(text: str, amount: float) -> None:
    """A ball of few pixels takes back a change of all: only one of a few comes to the ends of the window."""
    image = hard_images((9, 12), 2 if text.startswith("channels") else 1, torch.float32)
    ball = bound(text, image)
    x = image.clone()
    x[..., 4, 5] += amount
    moved = ball.project(x, image)
    assert 0 <= moved.min() <= moved.max() <= 1
    assert (ball.size(moved, image) <= ball.limit * (1 + TOLERANCE) + TOLERANCE).all()


@pytest.mark.parametrize("text", [text for text in BALLS if not registry.build(text, "ball").moves_anatomy])
def test_the_way_into_the_ball_has_a_slope_where_nothing_has_changed_yet(text: str) -> None:
    """A perturbation of many images begins at nothing and follows the slope through the ball."""
    image = hard_images((9, 12), 2 if text.startswith("channels") else 1, torch.float64)
    x = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad((bound(text, image).project(x, image) * image.cos()).sum(), x)
    assert torch.isfinite(slope).all()


def test_every_registered_ball_is_tried() -> None:
    assert {registry.spec_of(registry.build(text, "ball")).name for text in BALLS} == set(registry.names("ball"))


@pytest.mark.parametrize("steps", [1, 12])
def test_pgd_in_the_blend_uses_its_limit_and_keeps_it(steps: int) -> None:
    """From white, a blend with -1 falls by 2 eps, and no number of steps makes it fall further."""
    white = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    attack = PGD(Blend(EPS), steps=steps, step_size=1.0, random_start=False, keep_worst=False)
    assert attack(oracle(SQUARE), white, white > 0, [1]).size.item() == pytest.approx(2 * EPS)


@pytest.mark.parametrize(("ball", "limit"), [(Linf(0.03), 0.03), (L2(0.7), 0.7), (Blend(0.03), 0.06)])
def test_the_limit_is_the_largest_change_that_one_step_makes(ball: Ball, limit: float) -> None:
    white = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    projected = ball.project(white + ball.step(-white, white), white)
    assert ball.limit == pytest.approx(limit)
    assert ball.size(projected, white).item() == pytest.approx(limit)


def harm_of(task: Task, image: Tensor, target: Tensor) -> float:
    return judge(oracle(task), Linf(), image, image, target).harm.item()


def test_harm_is_that_of_organs_and_not_of_the_background() -> None:
    """Four pixels, of which the model finds two; the organ is one of them: Dice 2/3, of the background 4/5."""
    image = torch.tensor([[[[0.9, 0.8], [0.1, 0.2]]]], dtype=torch.float64)
    organ = torch.tensor([[[[True, False], [False, False]]]])
    exclusive = Task("square", ("background", "organ"), exclusive=True)
    assert harm_of(exclusive, image, torch.cat([~organ, organ], 1)) == pytest.approx(1 / 3)
    assert harm_of(SQUARE, image, organ) == pytest.approx(1 / 3)
    both = harm_of(Task("two", ("all", "organ")), image, torch.cat([~organ, organ], 1))
    assert both == pytest.approx((1 / 3 + 3 / 5) / 2)


def test_a_change_of_another_channel_is_outside_of_any_ball_of_channels() -> None:
    ball = registry.build("channels(linf(0.1), channels=(0, 2))", "ball")
    x0 = torch.full((3, 3, 4, 5), 0.5)
    x = x0.clone()
    x[0, 0] += 0.05
    x[1, 1, 2, 3] += 1e-6
    x[2, 2] -= 0.08
    assert ball.size(x, x0).tolist() == pytest.approx([0.05, float("inf"), 0.08])
    assert ball.size(ball.project(x, x0), x0).tolist() == pytest.approx([0.05, 0.0, 0.08])


def test_the_longest_displacement_is_that_of_each_sample() -> None:
    flow = torch.zeros(2, 2, 3, 5)
    flow[0, :, 2, 4] = torch.tensor([3.0, 4.0])
    flow[1, :, 0, 1], flow[1, :, 1, 1] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -2.0])
    assert longest(flow).tolist() == [5.0, 2.0]


def test_the_ends_of_a_balls_budget() -> None:
    for text in (
        "linf(0)",
        "linf(0.999)",
        "l0(0)",
        "l0(1)",
        "l2(0)",
        "l2(20)",
        "channels(channels=(0, 2), shares=(1, 0.1))",
    ):
        registry.build(text, "ball")
    for text in (
        *(
            "linf(1)",
            "linf(-0.1)",
            "l0(1.1)",
            "l0(-0.1)",
            "l2(-1)",
            "channels(channels=())",
            "channels(channels=(-1,))",
        ),
        *(
            "channels(channels=(0, 0))",
            "channels(channels=(0,), shares=(0,))",
            "channels(channels=(0,), shares=(1.1,))",
        ),
        "channels(channels=(0, 1), shares=(1,))",
    ):
        with pytest.raises(InputError):
            registry.build(text, "ball")


def test_of_a_share_of_pixels_the_largest_changes_are_kept() -> None:
    x0 = torch.full((1, 1, 2, 5), 0.5)
    change = torch.tensor([0.1, -0.4, 0.2, 0.3, 0.0, -0.1, 0.15, 0.05, 0.0, 0.0]).view(1, 1, 2, 5)
    ball = registry.build("l0(0.3)", "ball")
    kept = ball.project(x0 + change, x0) - x0
    expected = torch.where(change.abs() > 0.19, change, 0.0)
    torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(ball.step(change, x0), expected.sign())
    assert ball.size(x0 + change, x0).item() == pytest.approx(0.7)
    assert torch.equal(registry.build("l0(0.9)", "ball").project(x0 + change, x0), x0 + change)
    start = ball.sample(x0, [3])
    values = torch.rand((1, 2, 5), generator=torch.Generator().manual_seed(3), dtype=torch.float64).float()
    places = torch.rand((1, 2, 5), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(start[0], torch.where(places >= places.flatten().topk(3).values[-1], values, x0[0]))


def test_a_length_ball_scales_what_is_too_long_and_an_empty_budget_moves_nothing() -> None:
    x0 = torch.full((2, 1, 1, 2), 0.5, dtype=torch.float64)
    x = x0 + torch.tensor([[0.3, -0.4], [0.03, 0.04]], dtype=torch.float64).view(2, 1, 1, 2)
    moved = L2(0.25).project(x, x0) - x0
    torch.testing.assert_close(moved.flatten(1), torch.tensor([[0.15, -0.2], [0.03, 0.04]], dtype=torch.float64))
    torch.testing.assert_close(L2(0.25).shrink(x, x0), torch.tensor([0.5, 5.0], dtype=torch.float64))
    torch.testing.assert_close(L2(2.0).step(x - x0, x0).flatten(1).norm(dim=1), torch.full((2,), 2.0, dtype=x.dtype))
    assert torch.equal(L2(0.0).project(x, x0), x0)


def test_of_moving_anatomy_intensities_stay() -> None:
    ball = registry.build("displacement(2)", "ball")
    x0 = MANY[:2].float()
    assert not ball.step(x0, x0).any()
    assert ball.project(x0 + 0.1, x0) is not x0
    assert torch.equal(ball.project(x0 + 0.1, x0), x0)
    assert torch.equal(ball.sample(x0, [1, 2]), x0)
    x = x0.clone()
    x[1, 0, 3, 4] += 2e-6
    assert ball.size(x, x0).tolist() == [0.0, float("inf")]
    x[1, 0, 3, 4] = x0[1, 0, 3, 4] + 5e-7
    assert ball.size(x, x0).tolist() == [0.0, 0.0]


def test_channels_that_the_image_does_not_have_are_refused_by_every_use_of_the_ball() -> None:
    ball, x0 = registry.build("channels(linf(0.1), channels=(0, 3))", "ball"), torch.full((1, 3, 4, 5), 0.5)
    with pytest.raises(InputError, match="expected channels below 3"):
        ball.free(x0)
    for use in (ball.step, ball.project, ball.size):
        with pytest.raises(InputError, match="expected channels below 3"):
            use(x0, x0)
    free = registry.build("channels(linf(0.1), channels=(0, 2))", "ball").free(x0)
    assert free.flatten(2).all(2).tolist() == [[True, False, True]]


@pytest.mark.parametrize("ball", [L2(0.3), Channels(L2(0.3), (1,)), Linf(0.1), Channels(Linf(0.1), (0, 1))], ids=str)
def test_shares_of_what_may_change_reach_the_edge_of_a_length_and_are_shares_of_a_bound_of_each_value(
    ball: Ball,
) -> None:
    image = torch.full((2, 2, 7, 9), 0.5, dtype=torch.float64)
    share = torch.linspace(-1, 1, image.numel(), dtype=torch.float64).view_as(image)
    change = shared_out(ball, share, image)
    if bounds_length(ball):
        torch.testing.assert_close(ball.size(image + change, image), torch.full((2,), 0.3, dtype=torch.float64))
        edge = widen(to_edge(ball, image + 0.1 * change, image), change)
        torch.testing.assert_close(edge * 0.1 * change, change)
    else:
        torch.testing.assert_close(change, 0.1 * share)


@pytest.mark.parametrize("inner", [Linf(0.1), L2(0.6)], ids=str)
def test_all_go_as_far_as_the_share_of_their_channel(inner: Ball) -> None:
    image = torch.full((2, 3, 4, 9), 0.5, dtype=torch.float64)
    ball = Channels(inner, (0, 2), (1.0, 0.25))
    alone = even_change(inner, image[:, :1])
    expected = torch.cat([alone, 0 * alone, 0.25 * alone], 1)
    torch.testing.assert_close(even_change(ball, image), expected)
    text = f"within({registry.spec(ball)})"
    torch.testing.assert_close(scale_of(bound(text, image), image), expected)  # all of it is bright: a region of all


@pytest.mark.parametrize("name", registry.names("ball"))
def test_a_value_of_a_ball_that_counts_goes_as_far_as_any_and_of_others_as_all_alike(name: str) -> None:
    """A share of pixels is no intensity."""
    ball, image = registry.build(name, "ball"), torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    if name == "within":  # another region for each case
        return
    scale = scale_of(ball, image)
    expected = torch.ones_like(image) if name in ("l0", "pixels", "area", "edit_area") else even_change(ball, image)
    torch.testing.assert_close(scale, expected)
