"""The search in the latent of a generator: where it ends on one that can be computed, and what it is held to."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.edits import latent_edit
from medseg_attack.attacks.edits.boxes import SIDE, Box
from medseg_attack.attacks.edits.content import EditArea
from medseg_attack.attacks.edits.inpaint import LATENTS, Inpaint, cut
from medseg_attack.attacks.edits.latent_edit import LatentEdit, noise_apart
from medseg_attack.attacks.universal.advgan import WIDTHS, Generator
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Task

WIDE, SEEDS = EditArea(1.0), [1, 2, 3]
ORGAN = Task("organ", ("organ",))
GAIN = 2.0


class Bright(torch.nn.Module):
    """Organ where a pixel of a square is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.zeros_like(x, dtype=torch.bool)
        place[:, :, 16:24, 16:24] = True
        return torch.where(place, 10 * (x - 0.5), -20)


def brightening(channels: int = 1, organs: int = 1) -> dict[str, Tensor]:
    """A generator whose hole is as bright as its first latent says, by `brightness`."""
    weights = Generator(channels + 1 + organs + LATENTS, 2, channels).state_dict()
    weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    weights["inward.weight"][0, channels + 1 + organs, 1, 1] = 1
    weights["outward.weight"][0, WIDTHS[1], 1, 1] = 1
    weights["last.weight"][:, 0] = GAIN
    return weights


def brightness(mean: float, latent: float) -> float:
    """The intensity that it paints among surroundings of a mean; two leaky units of slope 0.1 lie in between."""
    change = latent - 0.5
    change = change if change > 0 else 0.01 * change
    return 1 / (1 + math.exp(-math.log(mean / (1 - mean)) - GAIN * change))


def scene() -> tuple[Tensor, Tensor]:
    """A grey image with a bright square organ in the middle."""
    target = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    target[:, :, 16:24, 16:24] = True
    return torch.where(target, 0.8, torch.tensor(0.3)), target


@pytest.mark.parametrize(("aim", "latent"), [("missed", -2.0), ("believed", 2.0)])
def test_of_a_generator_that_brightens_the_latent_goes_to_the_end_that_is_aimed_at(aim: str, latent: float) -> None:
    image, target = scene()
    with frozen(SegModel(Bright(), ORGAN)) as model:
        attack = LatentEdit(WIDE, aim=aim).with_learned(brightening())
        result = attack(model, image, target, [1])
        start = Inpaint(WIDE, "keep").with_learned(brightening())(model, image, target, [1])
    assert result.image[0, 0, 20, 20].item() == pytest.approx(brightness(0.3, latent), abs=1e-5)
    assert start.image[0, 0, 20, 20].item() == pytest.approx(brightness(0.3, 0), abs=1e-5)
    assert torch.equal(result.truth, target)


class Rivals(torch.nn.Module):
    """An organ that is bright, and one that is dark, which counts three times as much."""

    def forward(self, x: Tensor) -> Tensor:
        bright = Bright()(x)
        return torch.cat([bright, torch.where(bright > -20, -3 * bright, -20)], 1)


@pytest.mark.parametrize(("organ", "latent"), [("bright", 2.0), ("dark", -2.0)])
def test_belief_is_that_in_the_edited_organ_alone(organ: str, latent: float) -> None:
    """Both organs lie in the square, so that what is good for one is bad for the other; of both it is a grey one."""
    image, square = scene()
    task, target = Task("two", ("bright", "dark")), torch.cat([square, square], 1)
    with frozen(SegModel(Rivals(), task)) as model:
        attack = LatentEdit(WIDE, organ=organ, aim="believed").with_learned(brightening(organs=2))
        result = attack(model, image, target, [1])
    assert result.image[0, 0, 20, 20].item() == pytest.approx(brightness(0.3, latent), abs=1e-5)


def test_a_removal_is_believed_where_the_organ_is_not_drawn_and_its_classes_exclude_each_other_no_more() -> None:
    """Of background and a bright organ the search for a removal ends at the dark end, whatever is drawn there."""
    image, square = scene()
    task, target = Task("one", ("background", "organ"), exclusive=True), torch.cat([~square, square], 1)

    class Softmax(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0 * x, Bright()(x)], 1)

    with frozen(SegModel(Softmax(), task)) as model:
        edit = LatentEdit(WIDE, edit="remove", aim="believed")
        result = edit.with_learned(brightening())(model, image, target, [1])
        softmax = replace(edit, objective=registry.build("js_softmax", "objective")).with_learned(brightening())
        with pytest.raises(InputError, match="expected an objective for classes that may overlap"):
            softmax(model, image, target, [1])
    assert result.image[0, 0, 20, 20].item() == pytest.approx(brightness(0.3, -2.0), abs=1e-5)
    assert not model.decide(model(result.image))[:, 1].any()


def test_what_is_quiet_weighs_against_belief_in_a_pixel_of_the_organ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A brightness b costs 3 b, and softplus(5 - 10 b) in each pixel of the organ, however large the slice is.

    Of the latents that steps of 1/2 reach, 1 is the best: b = 0.54. Per pixel of the slice darkness would win.
    """
    monkeypatch.setattr(latent_edit, "noise_apart", lambda cells: cells[..., 12:20, 12:20].mean((1, 2, 3)))
    image, target = scene()
    wide = torch.nn.functional.pad(image, (0, 40, 0, 40), value=0.3)
    wider = torch.nn.functional.pad(target, (0, 40, 0, 40))
    edit = LatentEdit(WIDE, aim="believed", quiet=3).with_learned(brightening())
    with frozen(SegModel(Bright(), ORGAN)) as model:
        for x, y in ((image, target), (wide, wider)):
            end = edit(model, x, y, [1]).image[0, 0, 20, 20].item()
            assert end == pytest.approx(brightness(0.3, 1.0), abs=1e-5)


def test_a_step_of_nothing_stays_at_the_filling_of_latent_0() -> None:
    image, target = scene()
    with frozen(SegModel(Bright(), ORGAN)) as model:
        still = LatentEdit(WIDE, step_size=0).with_learned(brightening())(model, image, target, [1])
        start = Inpaint(WIDE, "keep").with_learned(brightening())(model, image, target, [1])
    assert torch.equal(still.image, start.image)


def test_the_control_draws_a_latent_of_its_own_within_max_latent() -> None:
    image, target = scene()
    control = LatentEdit(WIDE, search=9, max_latent=1.5).control()
    assert control == LatentEdit(WIDE, search=0, max_latent=1.5)
    low, high = (brightness(0.3, latent) for latent in (-1.5, 1.5))
    with frozen(SegModel(Bright(), ORGAN)) as model:
        attack = control.with_learned(brightening())
        drawn = [attack(model, image, target, [seed]).image[0, 0, 20, 20].item() for seed in (1, 1, *range(2, 9))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 8
    assert max(drawn) > brightness(0.3, 1.0)
    assert all(low - 1e-6 <= value <= high + 1e-6 for value in drawn)


def test_what_is_found_is_no_less_than_the_filling_of_latent_0_by_its_objective() -> None:
    batch, short = blobs.batch(3), Inpaint(WIDE, steps=4)
    with frozen(blobs.healthy()) as model:
        learned = short.fit(model, [batch], 0)
        objective = registry.build("bce", "objective")
        for edit in ("keep", "remove", "insert"):
            for aim, sign in (("missed", 1), ("believed", -1)):
                heights = []
                for search in (1, 6):
                    attack = LatentEdit(WIDE, edit, search=search, aim=aim).with_learned(learned)
                    result = attack(model, batch.image, batch.target, SEEDS)
                    heights.append(sign * objective(model(result.image), result.truth))
                start = Inpaint(WIDE, edit).with_learned(learned)(model, batch.image, batch.target, SEEDS)
                assert torch.equal(start.truth, result.truth)
                assert (heights[1] >= heights[0]).all()
                assert (heights[0] >= sign * objective(model(start.image), start.truth)).all()
                assert (heights[1] > sign * objective(model(start.image), start.truth)).any()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_noise_of_the_hole_is_compared_with_that_of_the_rest_and_planes_have_none(factor: float) -> None:
    rows = torch.arange(SIDE, dtype=torch.float64)
    noise = torch.where((rows[:, None] + rows) % 2 > 0, 0.01, -0.01).expand(2, 3, -1, -1)  # of one strength everywhere
    cells = 0.3 + 0.01 * rows + noise
    hole = (slice(None), slice(None), slice(6, 26), slice(6, 26))
    assert noise_apart(cells).tolist() == pytest.approx([0, 0], abs=1e-9)
    edited = cells.clone()
    edited[hole] = (0.7 - 0.02 * rows[:, None] + factor * noise)[hole]
    assert noise_apart(edited).tolist() == pytest.approx([abs(math.log(factor))] * 2)
    assert torch.isfinite(noise_apart(torch.full_like(cells, 0.5))).all()


def test_a_quiet_search_is_given_away_less_by_its_noise() -> None:
    batch, short = blobs.batch(3), Inpaint(WIDE, steps=4)
    with frozen(blobs.healthy()) as model:
        learned = short.fit(model, [batch], 0)
        boxes = [Box.around(place) for place in batch.target.any(1)]
        start, quiet = (
            noise_apart(cut(boxes, attack.with_learned(learned)(model, batch.image, batch.target, SEEDS).image))
            for attack in (Inpaint(WIDE, "remove"), LatentEdit(WIDE, "remove", quiet=1e4, max_latent=5.0))
        )
    assert (quiet <= start + 1e-3).all()
    assert quiet.sum() < start.sum() - 0.01


def test_refusals_name_the_attack_that_was_asked_for() -> None:
    image, target = scene()
    with frozen(SegModel(Bright(), ORGAN)) as model:
        with pytest.raises(InputError, match="expected latent_edit to name an organ"):
            LatentEdit(organ="liver").with_learned(brightening())(model, image, target, [1])
        with pytest.raises(InputError, match="latent_edit has to be fitted first"):
            LatentEdit()(model, image, target, [1])
        with pytest.raises(InputError, match="to fit latent_edit on, got none"):
            LatentEdit().fit(model, [], 0)
        with pytest.raises(InputError, match="2 organs, as latent_edit was fitted on, got 1 and 1"):
            LatentEdit().with_learned(brightening(organs=2))(model, image, target, [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent_edit(search=-1)", "search"),
        ("latent_edit(step_size=-1)", "step_size"),
        ("latent_edit(max_latent=0)", "max_latent"),
        ("latent_edit(aim='seen')", "aim to be one of missed, believed"),
        ("latent_edit(quiet=-1)", "quiet"),
        ("latent_edit(linf)", "ball edit_area for latent_edit"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")
