"""Balls that are held to a region, and patches, which are scored beside what they cover."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scans import palette_png
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.patch import Area, Patch
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import frozen
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.balls.regions import Within, body, parse_region, region_of
from medseg_attack.types import Ball, Batch, Case, Setting, Stack, Task, Window

TASK = Task("toy", ("background", "organ"), exclusive=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def case(number: int = 0, spacing: tuple[float, float] = (1.0, 2.0)) -> Case:
    image = 0.05 + 0.05 * random(1, 20, 18, seed=number)
    image[:, 4:16, 3:15] += 0.6
    organ = torch.zeros(20, 18, dtype=torch.bool)
    organ[8:11, 7:9] = True
    target = torch.stack([~organ, organ])
    return Case(f"c{number}", "v", "g", image, target, spacing, Window(0, 1), Stack(1, 3, 5.0), classes=TASK.classes)


def test_the_body_is_what_is_bright_with_what_it_encloses() -> None:
    image = case().image[0].numpy().copy()
    image[8:10, 8:10] = 0.0  # a lung
    image[0, 17] = 0.7  # a wire
    expected = np.zeros((20, 18), bool)
    expected[4:16, 3:15] = True
    assert (body(image) != expected).sum() <= 4  # corners are rounded
    assert body(image)[9, 9]
    assert not body(image)[0, 17]


def test_rings_are_in_mm_and_outside_is_outside() -> None:
    ring = region_of(case(spacing=(1.0, 2.0)), "ring:2mm")
    assert ring[:, 7].nonzero()[0].tolist() == [6, 7, 11, 12]  # two rows of 1 mm above and below
    assert ring[9].nonzero()[0].tolist() == [6, 9]  # one column of 2 mm on either side
    outside = region_of(case(), "outside:organ")
    assert (outside == ~case().target[1].numpy()).all()
    assert not region_of(replace(case(), target=torch.zeros(2, 20, 18, dtype=torch.bool)), "ring:2mm").any()


def test_masks_come_from_files_of_the_grid_or_of_the_scan(tmp_path: Path) -> None:
    flat = np.zeros((20, 18), np.uint8)
    flat[2:5, 2:5] = 1
    np.save(tmp_path / "flat.npy", flat)
    np.save(tmp_path / "scan.npy", np.stack([flat * 0, flat, flat * 0]))
    assert (region_of(case(), f"mask:{tmp_path}/flat.npy") == (flat > 0)).all()
    assert (region_of(case(), f"mask:{tmp_path}/scan.npy") == (flat > 0)).all()
    palette_png(tmp_path / "palette.png", flat)
    assert (region_of(case(), f"mask:{tmp_path}/palette.png") == (flat > 0)).all()
    np.save(tmp_path / "other.npy", flat[:7])
    with pytest.raises(InputError, match=r"\(20, 18\) for c0, got \(7, 18\)"):
        region_of(case(), f"mask:{tmp_path}/other.npy")
    ball = Within(region=f"mask:{tmp_path}/flat.npy")
    assert registry.build(registry.spec(ball), "ball") == ball
    np.save(tmp_path / "flat.npy", 1 - flat)
    with pytest.raises(InputError, match=r"with hash [0-9a-f]{16} in .*; restore that file"):
        registry.build(registry.spec(ball), "ball")


@pytest.mark.parametrize(
    "region",
    ["heart", "ring:10", "ring:-1mm", "ring:²mm", f"ring:{'9' * 400}mm", "body:lv", "outside:", "mask:/nowhere.npy"],
)
def test_what_is_no_region_is_refused(region: str) -> None:
    with pytest.raises(InputError, match=r"expected (--region|a mask)"):
        Within(region=region)


@pytest.mark.parametrize("ball", ["displacement(3)", "area(0.02)"])
def test_balls_of_other_kinds_are_not_held_to_a_region(ball: str) -> None:
    with pytest.raises(InputError, match="drop --region"):
        Within(registry.build(ball, "ball"))


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.4)], ids=str)
def test_nothing_outside_changes_and_the_budget_is_used_inside(ball: Ball) -> None:
    cases = [case(0), case(1)]
    image = torch.stack([one.image for one in cases])
    mask = torch.from_numpy(np.stack([region_of(one, "ring:2mm") for one in cases]))[:, None]
    held = Within(ball, "ring:2mm").bind(Setting(TASK, tuple(cases)))
    far = image + 0.3 * random(2, 1, 20, 18, seed=5) + 0.1
    for x in (held.project(far, image), held.sample(image, [1, 2]), image + held.step(far, image)):
        assert torch.equal(x[~mask], image[~mask])
        assert (held.size(x, image) <= ball.limit * (1 + 1e-6)).all()
    assert held.size(held.project(far, image), image).tolist() == pytest.approx([ball.limit] * 2, rel=1e-4)
    assert held.size(image + held.step(far, image), image).tolist() == pytest.approx([ball.limit] * 2, rel=1e-4)
    wrong = image.clone()
    wrong[1, 0, 0, 0] += 0.001
    assert held.size(wrong, image).tolist() == [0.0, math.inf]


def test_every_attack_of_a_run_is_held_to_its_region_and_the_loop_sees_to_it() -> None:
    model = registry.build("blurred_oracle", "model")(TASK)
    batch = Batch.of([case(0), case(1)])
    texts = (
        "best_of((pgd(linf(0.2), steps=3), fgsm(linf(0.2))))",
        "noise(linf(0.2))",
        "bias_field(steps=0)",
        "motion(steps=0)",
    )
    attacks = [registry.within(registry.build(text, "attack"), "outside:organ") for text in texts]
    with frozen(model):
        results = attack_chunk(model, [batch], attacks, keep_images=True)
    inside = batch.target[:, 1]
    for result in results:
        images = torch.stack(result.images)[:, 0]
        assert torch.equal(images[inside], batch.image[:, 0][inside])
        assert (images[~inside] != batch.image[:, 0][~inside]).float().mean() > 0.3
    with pytest.raises(InputError, match="another one for every case"):
        attacks[0](model, batch.image, batch.target, [1, 2])


@pytest.mark.parametrize("grid", [(20, 18), (9, 12, 10)])
def test_a_patch_covers_what_it_may_and_nothing_else(grid: tuple[int, ...]) -> None:
    model = registry.build("oracle", "model")(Task("t", ("organ",))).eval()
    image = random(3, 1, *grid)
    target = model.decide(model(image))
    ball = Area(0.05)
    result = Patch(ball, steps=2, samples=2)(model, image, target, [1, 2, 3])
    n = math.floor(0.05 * image[0].numel())
    changed = (result.image != image).flatten(1).sum(1)
    assert (changed <= n).all()
    assert (changed > 0.4 * n).all()
    where = [result.image[i, 0].ne(image[i, 0]).nonzero() for i in range(3)]
    side = (0.05 * image[0].numel()) ** (1 / len(grid))
    assert all((at.amax(0) - at.amin(0)).max() <= side * math.sqrt(2) + 1 for at in where)  # one piece
    assert len({tuple(at[0].tolist()) for at in where}) == 3  # each at a place of its own
    # a model that looks at single pixels is right everywhere but below the patch
    assert result.harm.tolist() == [0, 0, 0]


@pytest.mark.parametrize("margin", [0, 1])
def test_what_a_patch_covers_is_in_no_count(margin: int) -> None:
    model = registry.build("oracle", "model")(TASK)
    batch = Batch.of([case(n) for n in range(3)])
    batch.image[:] = batch.image.clamp(max=0.9)
    ball = Area(0.1, margin)
    with frozen(model):
        (result,) = attack_chunk(model, [batch], [Patch(ball, steps=0)], keep_images=True)
        clean = model.decide(model(batch.image))
    images = torch.stack(result.images)
    kept = ~ball.covered(images, batch.image)
    assert (~kept).flatten(1).sum(1).min() > (36 if margin == 0 else 45) * 0.6
    for n, row in enumerate(result.rows):
        target = batch.target[n] & kept[n]
        assert row.n_target == row.n_target_adv == target[1].sum()
        assert row.n_clean == row.n_adv == (clean[n] & kept[n])[1].sum()
        assert row.hit_adv == (clean[n] & target)[1].sum()


@pytest.mark.parametrize("ball", ["area(1.0)", "area(1.5)", "area(-0.1)"])
def test_a_patch_as_large_as_the_image_is_refused(ball: str) -> None:
    with pytest.raises(InputError, match="a patch smaller than the image"):
        registry.build(ball, "ball")


def test_a_patch_that_is_wider_than_a_narrow_image_is_refused() -> None:
    model = registry.build("oracle", "model")(Task("t", ("organ",))).eval()
    image = random(1, 1, 40, 4)
    with pytest.raises(InputError, match=r"a side of 6\.3 pixels in an image of \(40, 4\)"):
        Patch(Area(0.25))(model, image, image > 0.5, [1])


def test_a_patch_gains_nothing_from_what_it_covers() -> None:
    from medseg_attack.attacks.physical.patch import _right
    from medseg_attack.threat.objectives.losses import bce

    target = random(2, 1, 6, 5) > 0.5
    wrong = torch.where(target, -3.0, 3.0)
    under = torch.ones(2, 1, 6, 5, dtype=torch.bool)
    assert bce(_right(wrong, target, under), target).max() < 1e-6
    assert torch.equal(_right(wrong, target, ~under), wrong)


@pytest.mark.parametrize("name", ["cut.png", "cut.npy"])
def test_a_damaged_mask_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no mask")
    with pytest.raises(InputError, match=f"expected a (mask|picture) in .*{name}, got"):
        region_of(case(), f"mask:{tmp_path / name}")


def test_bright_is_a_tenth_of_the_way_from_dark_to_bright_whatever_the_offset() -> None:
    image = np.full((40, 40), 0.5)
    image[5:35, 5:35] = 0.54  # less than a tenth of the way
    image[10:30, 10:30] = 1.0
    inside = np.zeros_like(image, bool)
    inside[10:30, 10:30] = True
    assert (body(image) != inside).sum() <= 4
    image[5:35, 5:35] = 0.56
    inside[5:35, 5:35] = True
    assert (body(image) != inside).sum() <= 4
    assert body(np.full((6, 7), 0.3)).all()  # nothing is brighter than the rest


def test_a_ring_may_be_thinner_than_a_millimetre_but_has_a_width() -> None:
    assert parse_region("ring:0.5mm") == ("ring", "0.5")
    assert not region_of(case(spacing=(1.0, 2.0)), "ring:0.5mm").any()
    for region in ("ring:0mm", "ring:mm", "ring:1.2.3mm", "mask:"):
        with pytest.raises(InputError, match="expected --region"):
            parse_region(region)


def test_a_region_is_looked_for_when_the_ball_is_bound_and_holds_what_is_free() -> None:
    setting = Setting(TASK, (case(0), case(1)))
    with pytest.raises(InputError, match="expected an organ of this data set"):
        Within(Linf(0.1), "outside:liver").bind(setting)
    held = Within(registry.build("channels(linf(0.1), channels=(1,))", "ball"), "outside:organ").bind(setting)
    image = torch.stack([one.image for one in setting.cases]).repeat(1, 2, 1, 1)
    free = held.free(image)
    assert not free[:, 0].any()
    assert torch.equal(free[:, 1], ~torch.stack([one.target[1] for one in setting.cases]))
