"""What scanners and bodies do, each in its own unit: how far the default budget reaches, and that it is used."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.deformation import ShapeAndGain
from medseg_attack.attacks.physical.exposure import BRACKET
from medseg_attack.attacks.physical.patch import Patch
from medseg_attack.numerics.flows import warped
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Attack, Case, Image, Model, Setting, Task, Window

TASK = Task("square", ("organ",))
SPACING = (0.5, 2.0)
PHYSICAL = [name for name in registry.names("attack") if registry.find(name).family == "physical"]


def scene() -> tuple[Model, list[Case]]:
    """Smooth bodies on a black ground, finer in rows than in columns."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(24.0), indexing="ij")
    cases = []
    for n in range(3):
        disc = torch.sigmoid((11 - ((rows - 20) ** 2 / 2 + (columns - 11 - n) ** 2 * 2).sqrt()).double())
        texture = torch.rand(40, 24, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        image = torch.where(disc > 0.02, 0.3 + 0.25 * disc + 0.1 * texture, 0.0)[None]
        cases.append(Case(str(n), str(n), str(n), image, image > 0.5, SPACING, Window(0, 1)))
    return registry.build("blurred_oracle", "model")(TASK).double().eval(), cases


def drawn(text: str, seeds: Sequence[int] = (1, 2, 3)) -> tuple[Adversarial, Attack, Image]:
    """A random scan of that kind, the untouched image, and the attack bound to its cases."""
    model, cases = scene()
    attack = bind(registry.build(text, "attack", {"steps": 0}), Setting(TASK, tuple(cases)))
    image = torch.stack([case.image for case in cases])
    return attack(model, image, torch.stack([case.target for case in cases]), list(seeds)), attack, image


def shares(name: str, n: int = 6) -> Tensor:
    """The sizes of several draws, as shares of the ball's limit."""
    sizes = []
    for k in range(n):
        rendered, attack, image = drawn(name, [97 * k + s for s in (1, 2, 3)])
        still = image if rendered.flow is None else warped(image, rendered.flow)
        size = attack.ball.total_size(rendered.image, still, rendered.flow)
        torch.testing.assert_close(size, rendered.size)
        sizes.append(size / attack.ball.limit)
    return torch.cat(sizes)


@pytest.mark.parametrize("name", [name for name in PHYSICAL if name != "vafa_hanif2023"])
def test_draws_are_as_large_as_their_unit_allows_and_no_larger(name: str) -> None:
    """Released VAFA alone has no bound of its own: its stretch is held to [0, 1]."""
    sizes = shares(name)
    assert (sizes <= 1 + 1e-9).all()
    assert sizes.max() > (0.05 if name in ("motion", "vafa") else 0.35)
    assert len(set(sizes.tolist())) > 3  # every draw is another


@pytest.mark.parametrize("name", [name for name in PHYSICAL if name not in ("cbef", "patch", "vafa_hanif2023")])
def test_half_of_the_budget_is_half_of_the_change(name: str) -> None:
    """Of the same numbers: its own unit is what is scaled; roughly where a magnitude is taken or values are rounded.

    Not of a patch, whose pixels are counted, nor where a pixel may take a neighbour's value, which has no size.
    """
    rendered, attack, image = drawn(name)
    half = registry.with_eps(registry.build(name, "attack", {"steps": 0}), attack.ball.eps / 2)
    model, cases = scene()
    half = bind(half, Setting(TASK, tuple(cases)))
    smaller = half(model, image, torch.stack([case.target for case in cases]), [1, 2, 3])
    loose = name in ("vafa", "motion", "ghosting", "rician", "speckle")
    torch.testing.assert_close(smaller.size, rendered.size / 2, rtol=0.4 if loose else 0.1, atol=0)


def test_bias_fields_lie_between_their_strengths() -> None:
    rendered, _, image = drawn("bias_field")
    body = image > 0
    field = (rendered.image / image)[body]
    assert 0.7 - 1e-9 <= field.min() < 0.95
    assert 1.05 < field.max() <= 1.3 + 1e-9
    assert (rendered.image[~body] == 0).all()


@pytest.mark.parametrize("name", ["bef", "cbef"])
def test_exposures_lie_between_the_darkest_and_the_brightest(name: str) -> None:
    """Weights that add up to 1 mix exposures of half a stop either way: of a pixel, or with CBEF of those around."""
    rendered, _, image = drawn(name)
    low, high = (image * 2 ** (0.5 * stops) for stops in (BRACKET[0], BRACKET[-1]))
    if name == "cbef":
        low, high = (
            torch.nn.functional.max_pool2d(sign * bound, 3, 1, 1) * sign for sign, bound in ((-1, low), (1, high))
        )
    assert (rendered.image >= low - 1e-9).all()
    assert (rendered.image <= high.clamp(max=1) + 1e-9).all()
    assert (rendered.image != image)[image > 0].double().mean() > 0.9
    attack = registry.build(f"{name}(steps=0)", "attack")
    numbers = torch.full_like(attack.start(image, [1, 2, 3]), -1).view(3, 5, -1, 8, 8)
    numbers[:, 2] = 1  # all weight on the exposure of 0 stops
    if name == "bef":
        same = attack.render(numbers.flatten(1), image, 1.0).image
        torch.testing.assert_close(same, image, atol=0.02, rtol=0)  # the others keep under 1 % each


@pytest.mark.parametrize("name", ["deformation", "affine", "deformation_bias"])
def test_what_moves_does_so_in_mm(name: str) -> None:
    """3 mm at 0.5 and 2 mm a pixel; of a pose 5 mm, and on top what 10 degrees and a tenth of scale move a corner."""
    rendered, _, _ = drawn(name)
    assert rendered.flow is not None
    mm = (rendered.flow * torch.tensor(SPACING, dtype=torch.float64).view(1, 2, 1, 1)).square().sum(1).sqrt()
    corner = math.hypot(19.5 * SPACING[0], 11.5 * SPACING[1])
    most = 3.0 if name != "affine" else 5.0 + corner * (2 * math.sin(math.radians(10) / 2) + 0.1)
    assert mm.max() <= most + 1e-9
    assert mm.max() > 0.25 * most
    # one draw on a grid of other spacing moves by as many mm, so by other numbers of pixels
    assert rendered.flow[:, 0].abs().max() > rendered.flow[:, 1].abs().max()


def test_tissue_is_bounded_in_both_of_its_parts() -> None:
    ball = ShapeAndGain(0.5, shift_mm=4.0, strength=0.2)
    image = torch.full((1, 1, 6, 5), 0.5, dtype=torch.float64)
    flow = torch.zeros(1, 2, 6, 5, dtype=torch.float64)
    flow[:, 1] = 2.0  # 2 mm of 4: half
    assert ball.total_size(image, image, flow).item() == pytest.approx(0.5)
    assert ball.total_size(1.1 * image, image, 0 * flow).item() == pytest.approx(0.5, abs=1e-4)  # a tenth of a fifth
    assert ball.total_size(1.1 * image, image, 2 * flow).item() == pytest.approx(1.0)  # the larger share decides
    assert ball.project(2 * image, image).max().item() == pytest.approx(0.55)
    rendered, _, image = drawn("deformation_bias")
    assert rendered.flow is not None
    still = warped(image, rendered.flow)
    body = still > 0.05
    field = (rendered.image / still)[body]
    assert 0.7 - 1e-9 <= field.min() < field.max() <= 1.3 + 1e-9
    assert (field - 1).abs().max() > 0.03


@pytest.mark.parametrize(("name", "expected"), [("rician", 0.05), ("speckle", 0.1)])
def test_noise_has_the_deviation_that_is_stated(name: str, expected: float) -> None:
    """Of a flat image: Rician noise in each channel, speckle as a share of the pixel; cut at 3 deviations."""
    attack = registry.build(f"{name}(steps=0)", "attack")
    model, _ = scene()
    image = torch.full((1, 1, 96, 96), 0.6, dtype=torch.float64)
    change = attack(model, image, image > 0.5, [5]).image - image
    deviation = change.std() / (0.6 if name == "speckle" else 1)
    assert deviation.item() == pytest.approx(expected, rel=0.03)


def test_a_ghost_has_its_share_of_the_signal_and_repeats() -> None:
    """A period of 4 lines puts ghosts at quarters of the rows and nowhere else."""
    attack = registry.build("ghosting(steps=0, period=4)", "attack")
    model, _ = scene()
    image = torch.zeros(1, 1, 40, 24, dtype=torch.float64)
    image[..., 18:22, :] = 0.6
    change = attack(model, image, image > 0.5, [3]).image - image
    ratio = change.square().mean().sqrt() / image.square().mean().sqrt()
    assert 0.01 < ratio.item() <= 0.1
    lit = (change.abs() > 1e-6).any(-1)[0, 0].nonzero().flatten().tolist()
    assert set(lit) <= {row % 40 for offset in (0, 10, 20, 30) for row in range(18 + offset, 22 + offset)}
    assert len(lit) > 4


def test_frequencies_move_by_half_of_their_table() -> None:
    rendered, _, image = drawn("vafa(quantised(20))")
    blocks = torch.nn.functional.avg_pool2d((255 * (rendered.image - image)).square(), 8).sqrt()
    assert blocks.max() <= 10
    assert blocks.max() > 0.5
    fine = registry.build("vafa(quantised(1), steps=0)", "attack")
    model, _ = scene()
    textured = 0.3 + 0.4 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rms = (255 * (fine(model, textured, textured > 0.5, [1]).image - textured)).square().mean().sqrt()
    assert rms.item() == pytest.approx(1 / math.sqrt(12), rel=0.05)  # .29 grey levels


def test_the_released_stretch_alone_is_a_control_that_can_be_run() -> None:
    """A table of nearly nothing leaves the stretch: every plane from 0 to 1, and no frequency lost."""
    attack = registry.build("vafa(quantised(0.001, stretch=True), steps=0)", "attack")
    model, _ = scene()
    image = 0.3 + 0.2 * torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    perturbed = attack(model, image, image > 0.4, [1, 2]).image
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(perturbed, (image - low) / (high - low), atol=1e-3, rtol=0)


@pytest.mark.parametrize("planes", [True, False], ids=["2-D", "3-D"])
@pytest.mark.parametrize("stretch", [True, False])
def test_vafa_takes_planes_and_cubes_stretched_or_not(planes: bool, stretch: bool) -> None:
    model = registry.build("oracle", "model")(TASK).double().eval()
    image = 0.4 + 0.2 * torch.rand(2, 1, 8, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attack = registry.build(f"vafa(quantised(20, planes={planes}, stretch={stretch}), steps=4)", "attack")
    result = attack(model, image, model.decide(model(image)), [1, 2])
    assert (result.harm > 0).all()
    ends = result.image.amin((-2, -1)).max().item(), result.image.amax((-2, -1)).min().item()
    assert (ends == (0.0, 1.0)) == stretch
    sides = attack.ball.sides(3)
    assert sides == ((1, 8, 8) if planes else (8, 8, 8))


def test_patches_turn_and_shrink_by_as_much_as_they_may_to_either_side_and_no_more() -> None:
    image = torch.zeros(300, 1, 32, 40, dtype=torch.float64)
    attack = Patch(degrees=30, scale=0.5)
    places = attack._coordinates(image, range(300))
    down, across = (places[:, 0, *at] - places[:, 0, 0, 0] for at in ((1, 0), (0, 1)))
    angle, half = torch.atan2(-across, down).rad2deg(), 1 / torch.hypot(down, across)
    assert -30 <= angle.min() < -29
    assert 29 < angle.max() <= 30
    assert abs(angle.mean()) < 3  # of 300 uniform draws: three times the standard error
    largest = attack._side(image) / 2
    assert largest / 2 <= half.min() < 0.51 * largest
    assert 0.99 * largest < half.max() <= largest
