"""Edits of content: remove and insert, by what Laplace and Poisson say, and the truth that goes along."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.edits.content import EditArea, texture_beside
from medseg_attack.attacks.edits.insert import Insert, _matched
from medseg_attack.attacks.edits.remove import Remove
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics.edits import box_of, edge_contrast, measured_edit, noise_contrast, noise_p_value
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.harmonic import blended, filled, texture
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, CaseRef, Donors, Setting, Task, Window

ORGAN = Task("organ", ("organ",))


def hole(*shape: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(n // 3, 2 * n // 3) for n in shape)] = True
    return mask


@pytest.mark.parametrize("shape", [(24, 30), (9, 12, 10)])
def test_a_ramp_is_restored(shape: tuple[int, ...]) -> None:
    axes = np.meshgrid(*[np.linspace(0, 0.3, n) for n in shape], indexing="ij")
    ramp = sum(axes[1:], axes[0])
    mask = hole(*shape)
    damaged = np.where(mask, 7.0, ramp)
    assert np.abs(filled(damaged, mask) - ramp).max() < 1e-15
    assert np.array_equal(filled(damaged, mask)[~mask], damaged[~mask])


def test_a_hole_has_no_value_beyond_those_of_its_edge_and_one_without_an_edge_stays() -> None:
    image = np.random.default_rng(0).uniform(0.2, 0.8, (20, 20))
    mask = hole(20, 20)
    mask[0, :5] = True  # at the border of the image too
    result = filled(image, mask)
    assert image[~mask].min() <= result.min()
    assert result.max() <= image[~mask].max()
    everything = np.ones((4, 4), dtype=bool)
    assert np.array_equal(filled(image[:4, :4], everything), image[:4, :4])


def test_many_unknowns_are_solved_for_by_conjugate_gradients_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg_attack.numerics import harmonic

    image, mask = np.random.default_rng(1).uniform(size=(20, 20)), hole(20, 20)
    direct = filled(image, mask)
    monkeypatch.setattr(harmonic, "LARGEST", 0)
    assert np.abs(filled(image, mask) - direct).max() < 1e-6


def test_its_own_patch_is_the_identity_and_a_brighter_one_leaves_no_seam() -> None:
    image, mask = np.random.default_rng(2).uniform(size=(20, 20)), hole(20, 20)
    assert np.abs(blended(image, image, mask) - image).max() < 1e-14
    assert np.abs(blended(image, image + 0.3, mask) - image).max() < 1e-12  # details alone count


def test_texture_is_as_strong_as_around_the_hole() -> None:
    rng = np.random.default_rng(3)
    image, mask = 0.5 + 0.02 * rng.standard_normal((60, 60)), hole(60, 60)
    noise = texture(image, mask, (0, 20))
    assert not noise[~mask].any()
    assert noise[mask].std() == pytest.approx(0.02, rel=0.15)
    assert not texture(image, mask, (0, 0)).any()  # from the hole itself


def test_texture_goes_on_as_in_a_mirror_and_what_comes_from_the_hole_weakens_nothing() -> None:
    rng = np.random.default_rng(3)
    image, mask = 0.5 + 0.02 * rng.standard_normal((60, 60)), hole(60, 60)
    assert np.array_equal(texture(image, mask, (0, 38)), texture(image[:, ::-1], mask, (0, -38))[:, ::-1])
    noise = texture(image, mask, (0, 12))  # 8 of 20 columns come from the hole
    assert not noise[20:40, 20:28].any()
    assert noise[20:40, 28:40].std() == pytest.approx(0.02, rel=0.15)


def test_texture_comes_from_the_side_that_has_noise() -> None:
    """Air lies on the left, the border of the image above and below; the right alone has pixels with noise."""
    rng = np.random.default_rng(3)
    image = 0.5 + 0.02 * rng.standard_normal((1, 20, 90))
    image[..., :20] = 0
    mask = np.zeros((20, 90), dtype=bool)
    mask[:, 32:48] = True
    own = torch.from_numpy(image)
    for seed in range(4):
        noise = texture_beside(own, mask, seed)
        assert np.array_equal(noise[0], texture(image[0], mask, (0, 22)))
        assert noise[0][mask].std() == pytest.approx(0.02, rel=0.2)


class Bright(torch.nn.Module):
    """Organ where a pixel is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        return 40 * (x - 0.5)


def scene(n: int = 2) -> Batch:
    """Grey bodies with noise, each with one bright disc, at another place in each patient."""
    rng = torch.Generator().manual_seed(5)
    image = 0.3 + 0.02 * torch.randn(n, 1, 48, 48, generator=rng, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    target = torch.stack(
        [((rows - 16 - 4 * i).square() + (columns - 18 - 6 * i).square() < 36)[None] for i in range(n)]
    )
    image = image + 0.4 * target
    cases = [
        Case(f"s{i}", f"v{i}", f"p{i}", image[i], target[i], (1.0, 1.0), Window(0, 1), classes=("organ",))
        for i in range(n)
    ]
    return Batch.of(cases)


def test_a_removed_organ_is_gone_from_image_and_truth_and_nothing_else_changed() -> None:
    batch = scene()
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        result = Remove()(model, batch.image, batch.target, [1, 2])
        pred = model.decide(model(result.image))
    assert result.truth is not None
    assert not result.truth.any()
    assert not pred.any()  # the model believes it
    assert result.harm.tolist() == [0, 0]
    far = ~torch.nn.functional.max_pool2d(batch.target.double(), 7, 1, 3).bool()
    assert torch.equal(result.image[far], batch.image[far])
    inside = result.image[batch.target]
    assert inside.std().item() == pytest.approx(0.02, rel=0.4)  # noise as around


@dataclass(frozen=True)
class Shelf:
    cases: tuple[Case, ...]

    def read(self, ref: CaseRef) -> Case:
        return next(case for case in self.cases if case.id == ref.id)


def test_a_donor_s_organ_is_inserted_where_the_donor_has_it() -> None:
    batch = scene()
    refs = tuple(CaseRef(c.id, c.volume, c.group, (48, 48)) for c in batch.cases)
    attack = bind(Insert(), Setting(ORGAN, batch.cases, Donors(Shelf(batch.cases), refs)))
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        result = attack(model, batch.image, batch.target, [1, 2])
        pred = model.decide(model(result.image))
    assert torch.equal(result.truth, batch.target | batch.target.flip(0))
    shown = batch.target.flip(0) & ~batch.target
    assert (pred & shown).sum() > 0.8 * shown.sum()
    changed = (result.image != batch.image).any(1, keepdim=True)
    near = torch.nn.functional.max_pool2d(batch.target.flip(0).double(), 5, 1, 2).bool()
    assert not (changed & ~near).any()


def test_more_places_never_do_less() -> None:
    batch = scene()
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        one, many = (Insert(places=n)(model, batch.image, batch.target, [1, 2]) for n in (1, 6))
    assert (many.harm >= one.harm).all()
    assert many.truth is not None


def test_of_classes_that_exclude_each_other_each_pixel_keeps_one() -> None:
    task = Task("one", ("background", "a", "b"), exclusive=True)
    labels = torch.zeros(1, 24, 24, dtype=torch.long)
    labels[:, 4:10, 4:10], labels[:, 4:10, 12:20] = 1, 2
    target = torch.stack([labels == k for k in range(3)], 1)

    class Flat(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, 0 * x, 0 * x], 1)

    image = 0.3 + 0.2 * labels[:, None].double()
    with frozen(SegModel(Flat(), task).double()) as model:
        for attack in (Remove(organ="a"), Insert(organ="b")):
            truth = attack(model, image, target, [1]).truth
            assert truth is not None
            assert (truth.sum(1) == 1).all()
        gone = Remove(organ="a")(model, image, target, [1]).truth
        assert gone is not None
        assert not gone[:, 1].any()
        assert torch.equal(gone[:, 2], target[:, 2])


def test_an_edit_that_is_too_large_is_not_made() -> None:
    batch = scene()
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        result = Remove(EditArea(0.01))(model, batch.image, batch.target, [1, 2])
    assert torch.equal(result.image, batch.image)
    assert torch.equal(result.truth, batch.target)


def test_the_control_is_an_edit_without_content() -> None:
    batch = scene()
    for attack in (Remove(), Insert()):
        control = attack.control()
        with frozen(SegModel(Bright(), ORGAN).double()) as model:
            result = control(model, batch.image, batch.target, [1, 2])
            assert result.harm.tolist() == [0, 0]
        assert torch.equal(result.truth, batch.target)
        changed = (result.image != batch.image).flatten(1).any(1)
        assert changed.all()
        assert torch.equal(result.image[batch.target], batch.image[batch.target])


def test_rows_are_scored_with_the_truth_that_the_edit_shows() -> None:
    batch = scene()
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        (outcome,) = attack_chunk(model, [batch], [Remove()])
    assert [row.n_target for row in outcome.rows] == [int(t.sum()) for t in batch.target]
    assert [row.n_target_adv for row in outcome.rows] == [0, 0]


def test_measures_of_an_edit() -> None:
    batch = scene(1)
    truth = torch.zeros_like(batch.target)
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        x = Remove()(model, batch.image, batch.target, [1]).image
        before, after = model.decide(model(batch.image)), model.decide(model(x))
    believed = measured_edit(batch.image, x, before, after, batch.target, truth)
    assert believed.belief is True
    assert believed.collateral == 1
    assert believed.volume == -int(before.sum())
    assert 0 < believed.similarity < 0.9
    assert believed.noise == pytest.approx(1, abs=0.5)
    ignored = measured_edit(batch.image, x, before, before, batch.target, truth)
    assert ignored.belief is False
    nothing = measured_edit(batch.image, batch.image, before, before, batch.target, batch.target)
    assert (nothing.belief, nothing.collateral, nothing.similarity, nothing.noise) == (None, 1, pytest.approx(1), 1)
    inserted = measured_edit(batch.image, x, after, before, truth, batch.target)
    assert inserted.belief is True
    assert inserted.volume == int(before.sum())


def ramp_with_step(step: float) -> tuple[Tensor, Tensor, Tensor]:
    """A ramp of 0.01 a pixel along both axes, the same with a square that is so much brighter, and the square."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    ramp = 0.1 + 0.01 * (rows + columns).double()[None, None]
    place = torch.zeros(40, 40, dtype=torch.bool)
    place[15:25, 15:25] = True
    return ramp, ramp + step * place, place


def test_a_seam_is_the_step_at_the_border_of_an_edit() -> None:
    """Two sides of the square go up by 0.01 and 0.05, the others by 0.01 and down by 0.05: 0.06 and 0.04, on average
    0.05 where 0.01 was, and 0.01 around it."""
    ramp, edited, place = ramp_with_step(0.05)
    nothing = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    assert measured_edit(ramp, edited, nothing, nothing, nothing, nothing).seam == pytest.approx(5)
    assert measured_edit(ramp, ramp, nothing, nothing, nothing, nothing).seam == 1
    assert edge_contrast(edited, place) == pytest.approx(np.log2(5))
    assert edge_contrast(ramp, place) == pytest.approx(0)


def test_a_softer_border_than_its_surroundings_gives_an_edit_away_as_a_sharper_one_does() -> None:
    """Steps of 0.2 on a chessboard, of 0.1 from it to the grey of a square."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    place = ramp_with_step(0)[2]
    image = torch.where(place, 0.5, 0.4 + 0.2 * ((rows + columns) % 2).double())[None, None]
    assert edge_contrast(image, place) == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_noise_of_another_strength_gives_an_edit_away(factor: float) -> None:
    ramp, _, place = ramp_with_step(0)
    noise = 0.01 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert noise_contrast(ramp + torch.where(place, factor, 1.0) * noise, place) == pytest.approx(1, abs=0.35)
    assert noise_contrast(ramp + noise, place) == pytest.approx(0, abs=0.35)
    seam = noise_contrast(ramp + noise + 0.3 * place, place)  # no window lies on both sides of it
    assert seam == pytest.approx(noise_contrast(ramp + noise, place), abs=1e-9)
    assert np.isnan(noise_contrast(torch.where(place, 0.5, ramp + noise), place))  # no noise at all has no ratio


def noisy(seed: int, side: int = 64) -> Tensor:
    return 0.5 + 0.01 * torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_noise_of_another_strength_has_a_small_p_value_and_that_of_the_surroundings_an_even_one() -> None:
    place = torch.zeros(64, 64, dtype=torch.bool)
    place[22:42, 22:42] = True
    values = [noise_p_value(noisy(seed), place, 4) for seed in range(100)]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.06)
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)
    for factor, most in ((0.1, 0.002), (0.5, 0.05), (2.0, 0.05)):
        edited = 0.5 + torch.where(place, factor, 1.0) * (noisy(1) - 0.5)
        assert noise_p_value(edited, place, 4) <= most
    flat = torch.where(place, 0.5, noisy(1))
    assert noise_p_value(flat, place, 4) == 0.001


def test_a_block_that_is_the_least_of_a_few_has_a_p_value_of_one_among_them() -> None:
    """Of blocks of 16 pixels 1 of 9 lies in the place, and of 9 choices its own is the most extreme."""
    place = torch.zeros(48, 48, dtype=torch.bool)
    place[16:32, 16:32] = True
    image = noisy(2, 48)
    assert noise_p_value(torch.where(place, 0.5 + 0.1 * (image - 0.5), image), place) == pytest.approx(1 / 9, abs=0.03)
    air = image.clone()
    air[..., :16] = 0  # a column of blocks without noise that is not compared with
    assert noise_p_value(torch.where(place, 0.5 + 0.1 * (air - 0.5), air), place) == pytest.approx(1 / 6, abs=0.03)
    volume = image[:, :, None].expand(-1, -1, 3, -1, -1)
    middle = torch.zeros(3, 48, 48, dtype=torch.bool)
    middle[1] = place
    edited = torch.where(middle, 0.5 + 0.1 * (volume - 0.5), volume)
    assert noise_p_value(edited, middle) == pytest.approx(1 / 9, abs=0.03)  # in the slices of the place
    assert np.isnan(noise_p_value(image, place, 17))  # no block lies in the place


def test_where_nothing_or_everything_may_be_edited_there_is_nothing_to_compare() -> None:
    ramp, _, place = ramp_with_step(0)
    for nowhere in (torch.zeros_like(place), torch.ones_like(place)):
        measures = edge_contrast, noise_contrast, noise_p_value
        assert np.isnan([measure(ramp, nowhere) for measure in measures]).all()


def test_an_edit_of_a_volume_is_looked_at_in_plane() -> None:
    _, edited, place = ramp_with_step(0.05)
    volume, where = edited[:, :, None].repeat(1, 1, 3, 1, 1), place.expand(3, 40, 40)
    assert edge_contrast(volume, where) == pytest.approx(np.log2(5))


def test_a_box_holds_a_window_of_similarity() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0, 29] = True
    assert box_of(mask, 11) == (slice(0, 11), slice(19, 30))
    mask[:, 5] = True
    assert box_of(mask, 11) == (slice(0, 20), slice(5, 30))


def test_volumes_are_edited_whole() -> None:
    image = torch.full((1, 1, 6, 12, 12), 0.3, dtype=torch.float64)
    target = torch.zeros(1, 1, 6, 12, 12, dtype=torch.bool)
    target[:, :, 2:4, 4:7, 2:5] = True
    image[target] = 0.8
    with frozen(SegModel(Bright(), ORGAN).double()) as model:
        gone = Remove(EditArea(0.9))(model, image, target, [1])
        more = Insert(EditArea(0.9))(model, image, target, [1])
    assert gone.image[target].max() < 0.5
    assert torch.equal(more.truth, target | target.flip(-1))


@pytest.mark.parametrize(
    ("text", "message"),
    [("remove(linf)", "ball edit_area"), ("insert(places=0)", "places"), ("insert(max_shift=-1)", "max_shift")],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


@pytest.mark.parametrize("name", ["remove", "insert"])
def test_an_organ_that_the_task_has_not_is_refused(name: str) -> None:
    batch = blobs.batch(1)
    with frozen(blobs.healthy()) as model, pytest.raises(InputError, match=f"expected {name} to name an organ"):
        registry.build(f"{name}(organ='liver')", "attack")(model, batch.image, batch.target, [1])


def test_a_donor_without_contrast_is_put_in_as_it_is() -> None:
    hole = np.zeros((9, 9), dtype=bool)
    hole[4, 4] = True
    patch = np.full((9, 9), 0.3)
    assert np.array_equal(_matched(patch, np.random.default_rng(0).random((9, 9)), hole), patch)
