"""Organs that a generator paints in or out: what it may touch, what it is shown, and the truth that goes along."""

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.edits.boxes import FEATHER, HOLE, SIDE, Box
from medseg_attack.attacks.edits.content import EditArea, in_doubles, texture_beside
from medseg_attack.attacks.edits.inpaint import Inpaint, cut, quality_of, training_boxes
from medseg_attack.errors import InputError
from medseg_attack.metrics.edits import noise_contrast
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, Task

SEEDS = [1, 2, 3]
WIDE = EditArea(1.0)
FITTED = Inpaint(WIDE, steps=30, rate=5e-3)


@pytest.fixture(scope="module")
def learned() -> dict[str, Tensor]:
    with frozen(blobs.healthy()) as model:
        return FITTED.fit(model, [blobs.batch(4), blobs.batch(4, 2000)], 3)


def nothing_learned(learned: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in learned.items()}


def large(n: int = 3) -> Batch:
    """Slices of 80 x 70 with an organ in a corner, one in the middle that is larger than a hole, and none."""
    image = torch.rand(n, 1, 80, 70, generator=torch.Generator().manual_seed(2))
    target = torch.zeros(n, 2, 80, 70, dtype=torch.bool)
    target[0, 0, :5, 60:] = True
    target[1, 1, 30:55, 20:50] = True
    return Batch(image, target, ())


def test_a_box_holds_what_it_is_around_in_the_part_that_is_wholly_painted() -> None:
    for place in large().target.any(1):
        if not place.any():
            continue
        box = Box.around(place)
        weight = box.paste(torch.ones(1, SIDE, SIDE), torch.zeros(1, 80, 70))
        assert box.side >= SIDE
        assert (weight[0][place] > 0.5).all()


def test_in_a_box_of_its_own_size_a_cell_is_a_pixel() -> None:
    image = torch.rand(2, 50, 60)
    box = Box(7, 11, SIDE)
    assert torch.equal(box.cut(image), image[:, 7:39, 11:43])
    assert torch.equal(box.paste(box.cut(image), image), image)
    assert torch.equal(Box(-3, -2, SIDE).cut(image)[:, :4, :3], image[:, :1, :1].expand(2, 4, 3))


def test_a_hole_of_20_pixels_fades_over_2_and_nothing_else_is_touched() -> None:
    weight = Box(5, 6, SIDE).paste(torch.ones(1, SIDE, SIDE), torch.zeros(1, 50, 60))[0]
    assert weight[5 + SIDE // 2, 6:38].tolist() == [0] * 6 + [0.25, 0.75] + [1] * 16 + [0.75, 0.25] + [0] * 6
    assert (weight > 0).sum() == HOLE**2
    assert (weight == 1).sum() == (HOLE - 2 * FEATHER) ** 2


def test_a_generator_of_zeros_paints_the_mean_around_the_hole_with_texture_from_beside_it(
    learned: dict[str, Tensor],
) -> None:
    batch = blobs.batch(3)
    with frozen(blobs.healthy()) as model:
        attack = Inpaint(WIDE, organ="square").with_learned(nothing_learned(learned))
        result = attack(model, batch.image, batch.target, SEEDS)
    for image, edited, place, seed in zip(batch.image, result.image, batch.target[:, 1], SEEDS, strict=True):
        box = Box.around(place)
        around = box.cut(image)[0].clone()
        around[6:26, 6:26] = torch.nan
        weight = box.paste(torch.ones(1, SIDE, SIDE), torch.zeros_like(image))[0]
        inside = weight == 1
        assert inside.any()
        texture = texture_beside(in_doubles(image), (weight > 0).numpy(), seed)[0]
        expected = around.nanmean() + torch.from_numpy(texture).float()
        torch.testing.assert_close(edited[0][inside], expected[inside])
        assert torch.equal(edited[0][weight == 0], image[0][weight == 0])


@pytest.mark.parametrize("edit", ["remove", "insert", "keep"])
def test_pixels_outside_of_the_hole_stay_to_the_last_bit(learned: dict[str, Tensor], edit: str) -> None:
    batch = large()
    target = batch.target.flip(-1) if edit == "insert" else batch.target  # of which the donor is the mirror image
    attack = Inpaint(WIDE, edit).with_learned(learned)
    with frozen(blobs.healthy()) as model:
        result = attack(model, batch.image.clone(), target, SEEDS)
    for image, edited, place in zip(batch.image, result.image, batch.target.any(1), strict=True):
        still = torch.ones_like(place)
        if place.any():
            rows, columns = (at for at in place.nonzero(as_tuple=True))
            half = max(HOLE // 2, round(0.625 * max(int(at.max() - at.min()) + 1 for at in (rows, columns)))) + 1
            row, column = (int(at.min() + at.max() + 1) // 2 for at in (rows, columns))
            still[max(0, row - half) : row + half, max(0, column - half) : column + half] = False
            assert (edited != image).any()
        assert torch.equal(edited[:, still], image[:, still])
    assert result.image.min() >= 0
    assert result.image.max() <= 1


def test_the_truth_is_what_the_generator_is_shown(learned: dict[str, Tensor]) -> None:
    batch, task = blobs.batch(3), blobs.TASK
    square = batch.target.clone()
    square[:, 0] = False
    truths = {"remove": batch.target & ~square, "keep": batch.target, "insert": batch.target | square.flip(-1)}
    for edit, truth in truths.items():
        attack = Inpaint(WIDE, edit, "square").with_learned(learned)
        scene = attack.scene(task, batch.image, batch.target, SEEDS)
        assert torch.equal(scene.truth, truth)
        for box, shown, mask in zip(scene.boxes, scene.shown, truth, strict=True):
            assert torch.equal(shown, box.cut(mask.float()))
        with frozen(blobs.healthy()) as model:
            assert torch.equal(attack(model, batch.image, batch.target, SEEDS).truth, truth)


def test_of_classes_that_exclude_each_other_each_pixel_keeps_one(learned: dict[str, Tensor]) -> None:
    task = Task("one", ("background", *blobs.TASK.classes), exclusive=True)
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, 8:16, 4:10], labels[:, 10:20, 20:30] = 1, 2  # an inserted disc, mirrored, comes to lie on the square
    target = torch.stack([labels == k for k in range(3)], 1)
    for edit in ("remove", "insert"):
        scene = Inpaint(WIDE, edit, "round").with_learned(learned).scene(task, torch.rand(1, 1, 32, 32), target, [1])
        assert (scene.truth.sum(1) == 1).all()
        assert scene.truth[:, 1].any() == (edit == "insert")
        assert scene.shown.shape[1] == 2  # no background


def test_a_trained_generator_paints_an_organ_where_it_is_shown_one(learned: dict[str, Tensor]) -> None:
    """A square is brighter than the ground by 0.2."""
    batch = blobs.batch(4)
    with frozen(blobs.healthy()) as model:
        kept, gone = (
            Inpaint(WIDE, edit, "square").with_learned(learned)(model, batch.image, batch.target, [*SEEDS, 4])
            for edit in ("keep", "remove")
        )
    square = batch.target[:, 1:]
    assert (kept.image - gone.image)[square].mean() > 0.05
    errors = [(x - batch.image)[square].abs().mean() for x in (kept.image, gone.image)]
    assert errors[0] < errors[1]


def test_what_is_painted_has_the_noise_of_its_surroundings(learned: dict[str, Tensor]) -> None:
    image = 0.5 + 0.02 * torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(6))
    target = torch.zeros(3, 2, 64, 64, dtype=torch.bool)
    target[:, 0, 28:36, 28:36] = True
    with frozen(blobs.healthy()) as model:
        result = Inpaint(WIDE).with_learned(nothing_learned(learned))(model, image, target, SEEDS)
    for before, after in zip(image, result.image, strict=True):
        place = (before != after).any(0)
        assert place.sum() == HOLE**2
        assert noise_contrast(after[None], place) < 0.5
        smooth = torch.where(place, 0.5 + 0.1 * (before - 0.5), before)
        assert noise_contrast(smooth[None], place) > 2


def test_the_quality_of_a_generator_is_its_error_in_the_hole_beside_that_of_a_harmonic_filling(
    learned: dict[str, Tensor],
) -> None:
    """The mean of its surroundings misses a ramp of 0 to 1 over 32 cells by 1/32 of 0.5 to 9.5 cells: 5 on average."""
    ramp = (torch.arange(SIDE, dtype=torch.float64) / SIDE).expand(2, 1, SIDE, SIDE)
    shown = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.float64)
    attack = FITTED.with_learned({name: value.double() for name, value in nothing_learned(learned).items()})
    generator = attack.generator(blobs.TASK, ramp)

    class Darker(torch.nn.Module):
        """Real where the ramp is dark in the hole: the mean is 0.484 there."""

        def forward(self, x: Tensor) -> Tensor:
            return 1 - x[:, :1, 6:26, 6:26].amin((2, 3), keepdim=True)

    quality = quality_of(generator, Darker(), ramp, shown)
    assert quality.error.tolist() == pytest.approx([5 / SIDE] * 2)
    assert quality.harmonic_error.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert quality.accuracy.tolist() == [0.5, 0.5]  # both are taken for real
    assert quality_of(generator, Below(), ramp, shown).accuracy.tolist() == [1, 1]


class Below(torch.nn.Module):
    """Real where a pixel of the hole is below 0.3, as the ramp has some."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :1, 6:26, 6:26].amin((2, 3), keepdim=True) < 0.3).double()


def test_a_trained_generator_paints_holes_better_than_their_edges_say(learned: dict[str, Tensor]) -> None:
    batch = blobs.batch(6, 5000)  # that it was not trained on
    generator = FITTED.with_learned(learned).generator(blobs.TASK, batch.image)
    boxes = [Box.around(place) for place in batch.target[:, 1]]
    quality = quality_of(generator, Below(), cut(boxes, batch.image), cut(boxes, batch.target.float()))
    assert quality.error.mean() < quality.harmonic_error.mean()


def test_boxes_to_train_on_show_the_masks_of_their_pixels() -> None:
    batch = blobs.batch(2)
    marked = Batch(batch.target[:, 1:].float(), batch.target, batch.cases)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        real, shown = training_boxes(marked, blobs.TASK)
    assert real.shape == (8, 1, SIDE, SIDE)
    assert torch.equal(real, shown[:, 1:])
    assert shown.flatten(2).any(2).any()


def test_a_slice_without_the_organ_and_an_edit_that_is_too_large_are_left_alone(learned: dict[str, Tensor]) -> None:
    batch = large()
    with frozen(blobs.healthy()) as model:
        for ball, untouched in ((WIDE, [2]), (EditArea(0.01), [0, 1, 2])):
            result = Inpaint(ball).with_learned(learned)(model, batch.image, batch.target, SEEDS)
            assert torch.equal(result.image[untouched], batch.image[untouched])
            assert torch.equal(result.truth[untouched], batch.target[untouched])


def test_the_same_seed_trains_the_same_generator_and_a_file_may_have_any_order() -> None:
    short, batch = Inpaint(WIDE, steps=2), blobs.batch(2)
    with frozen(blobs.healthy()) as model:
        first, again, other = (short.fit(model, [batch], seed) for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        images = [
            short.with_learned(weights)(model, batch.image, batch.target, [1, 2]).image
            for weights in (first, dict(sorted(first.items())))
        ]
    assert torch.equal(*images)


def test_other_images_or_organs_than_it_was_fitted_on_are_refused(learned: dict[str, Tensor]) -> None:
    attack = FITTED.with_learned(learned)
    volume = torch.rand(1, 1, 4, 5, 6)
    other = SegModel(torch.nn.Conv2d(2, 2, 1), Task("t", ("a", "b"), channels=2), in_channels=2)
    with frozen(blobs.healthy()) as model, pytest.raises(InputError, match="expected slices for inpaint, got volumes"):
        attack(model, volume, torch.cat([volume > 0.5] * 2, 1), [1])
    with frozen(blobs.healthy()) as model, pytest.raises(InputError, match="expected slices for inpaint, got volumes"):
        FITTED.fit(model, [Batch(volume, volume > 0.5, ())], 0)
    with frozen(other), pytest.raises(InputError, match="1 channels and 2 organs, as inpaint was fitted on, got 2 and"):
        attack(other, torch.rand(1, 2, 40, 40), torch.ones(1, 2, 40, 40, dtype=torch.bool), [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inpaint(linf)", "ball edit_area"),
        ("inpaint(edit='move')", "edit to be one of remove, insert, keep"),
        ("inpaint(steps=0)", "steps"),
        ("inpaint(rate=0)", "rate"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


def test_it_is_not_run_before_it_is_fitted_nor_fitted_on_nothing_nor_for_an_organ_that_there_is_not(
    learned: dict[str, Tensor],
) -> None:
    batch = blobs.batch(1)
    with frozen(blobs.healthy()) as model:
        with pytest.raises(InputError, match="has to be fitted first"):
            FITTED(model, batch.image, batch.target, [1])
        with pytest.raises(InputError, match="expected images to fit"):
            FITTED.fit(model, [], 0)
        with pytest.raises(InputError, match="expected inpaint to name an organ"):
            Inpaint(organ="liver").with_learned(learned)(model, batch.image, batch.target, [1])
        with pytest.raises(InputError, match="expected inpaint to name an organ"):  # before minutes of training
            Inpaint(organ="liver", steps=1).fit(model, [batch], 0)
