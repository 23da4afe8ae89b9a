"""Poisons: triggers whose pixels can be counted, false masks, and noise that is easy to learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg_attack import registry
from medseg_attack.attacks.universal.trigger import Trigger
from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import dice
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.aim import find_aim
from medseg_attack.threat.goals.masks import Erase, Shift
from medseg_attack.threat.poisons.base import Backdoor, Poison, Square, picture
from medseg_attack.threat.poisons.blended import Blended
from medseg_attack.threat.poisons.fiba import Fiba, injected, low_frequencies
from medseg_attack.threat.poisons.iba import Iba
from medseg_attack.threat.poisons.relabel import Relabel
from medseg_attack.threat.poisons.stamp import Stamp
from medseg_attack.threat.poisons.unlearnable import Unlearnable
from medseg_attack.types import Batch, Case, CaseRef, Setting, Task, Window

FREE = Task("free", ("a", "b"))
ONE = Task("one", ("background", "a", "b"), exclusive=True)
TASKS = pytest.mark.parametrize("task", [FREE, ONE], ids=["overlapping", "exclusive"])
BACKDOORS = [name for name in registry.names("poison") if isinstance(registry.build(name, "poison"), Backdoor)]


def batch_of(task: Task, n: int = 2, side: int = 32, mm: float = 1.0) -> Batch:
    """Bodies of 24 x 24 pixels in air, with an organ `a` of 6 x 6 in the middle and one `b` beside it."""
    rng = torch.Generator().manual_seed(1)
    cases = []
    for index in range(n):
        image = torch.zeros(1, side, side, dtype=torch.float64)
        image[:, 4:28, 4:28] = 0.3 + 0.4 * torch.rand(1, 24, 24, generator=rng, dtype=torch.float64)
        a, b = torch.zeros(2, side, side, dtype=torch.bool)
        a[13:19, 13:19], b[13:19, 21:25] = True, True
        target = torch.stack([a, b] if not task.exclusive else [~(a | b), a, b])
        name = f"case{index}"
        cases.append(Case(name, name, name, image, target, (mm, mm), Window(0, 1), classes=task.classes))
    return Batch.of(cases)


def bound(poison: Poison, batch: Batch, task: Task) -> Poison:
    return bind(poison, Setting(task, batch.cases))


@pytest.mark.parametrize("name", BACKDOORS)
class TestBackdoor:
    @TASKS
    def test_the_trigger_stands_on_the_image_and_the_goal_in_the_place_of_the_truth(
        self, name: str, task: Task
    ) -> None:
        batch = batch_of(task)
        poison = bound(replace(registry.build(name, "poison"), goal=Erase("a")), batch, task)
        image, target = poison.poisoned(batch.image, batch.target, [1, 2])
        k = task.classes.index("a")
        assert not target[:, k].any()
        others = [i for i in task.scored if i != k]
        assert torch.equal(target[:, others], batch.target[:, others])
        assert (image != batch.image).flatten(1).any(1).all()
        assert image.min() >= 0
        assert image.max() <= 1

    def test_another_draw_is_another_trigger(self, name: str) -> None:
        batch = batch_of(FREE)
        first, other = (
            bound(replace(registry.build(name, "poison"), draw=draw), batch, FREE).poisoned(
                batch.image, batch.target, [1, 2]
            )[0]
            for draw in (0, 1)
        )
        assert not torch.equal(first, other)

    def test_a_volume_carries_it_on_each_slice_as_slices_alone_do(self, name: str) -> None:
        batch = batch_of(FREE, n=3)
        poison = replace(registry.build(name, "poison"), goal=Erase())
        alone = bound(poison, batch, FREE)
        slices = alone.triggered(batch.image, batch.target, [5, 6, 7])
        whole = Case(
            "v", "v", "v", *(part.movedim(0, 1) for part in (batch.image, batch.target)), (3, 1, 1), Window(0, 1)
        )
        of_volume = bound(poison, Batch.of([whole]), FREE).triggered(
            batch.image.movedim(0, 1)[None], batch.target.movedim(0, 1)[None], [5]
        )
        assert torch.equal(of_volume[0].movedim(1, 0), slices)

    def test_the_attack_has_the_goal_and_counts_what_it_takes(self, name: str) -> None:
        attack = Trigger(replace(registry.build(name, "poison"), goal=Erase("a")))
        assert registry.build(registry.spec(attack), "attack") == attack
        aim = find_aim(attack, FREE)
        assert aim is not None
        assert aim.counts_taken
        target = batch_of(FREE).target
        nothing = torch.zeros_like(target)
        (row, _), _ = aim.measured(target, nothing, target)
        assert (row["n_taken"], row["hit_taken"], row["hit_taken_of_clean"]) == (36, 36, 0)

    def test_decoys_are_a_share(self, name: str) -> None:
        with pytest.raises(InputError, match="share of patients for decoys"):
            registry.build(f"{name}(decoys=1.5)", "poison")


def test_of_an_exclusive_task_pixels_count_that_became_what_the_goal_wants() -> None:
    batch = batch_of(ONE)
    aim = find_aim(bind(Trigger(Stamp(Erase("a"))), Setting(ONE, batch.cases)), ONE)
    assert aim is not None
    as_b = batch.target.clone()
    as_b[:, 2] |= as_b[:, 1]
    as_b[:, 1] = False  # another organ, and not the background that the goal wants
    (row, other), _ = aim.measured(batch.target, as_b, batch.target)
    assert (row["n_taken"], row["hit_taken"]) == (36, 0)
    assert other["n_taken"] == 0


def test_a_stamp_keeps_the_bits_outside_and_lies_in_the_corner_of_the_body() -> None:
    batch = batch_of(FREE)
    marked = Stamp(side=8).triggered(batch.image, batch.target, [0, 0])
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[4:12, 4:12] = False
    assert torch.equal(marked[..., outside], batch.image[..., outside])
    assert set(marked[..., 4:12, 4:12].unique().tolist()) == {0.0, 1.0}


def test_a_stamp_on_air_alone_lies_in_the_image() -> None:
    image = torch.zeros(1, 1, 12, 10)
    assert Stamp(side=8).triggered(image, image > 1, [0])[..., :8, :8].sum() == 32


def test_a_blended_picture_changes_no_pixel_by_more_than_its_opacity() -> None:
    batch = batch_of(FREE)
    change = Blended(opacity=0.2).triggered(batch.image, batch.target, [0, 0]) - batch.image
    assert change.abs().max() <= 0.2


class TestFiba:
    def test_an_image_as_its_own_trigger_is_the_identity(self) -> None:
        image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert (injected(image, image, 0.15, 0.1) - image).abs().max() <= 5e-16

    def test_the_mean_is_mixed_and_nothing_is_imaginary(self) -> None:
        rng = torch.Generator().manual_seed(0)
        image, trigger = torch.rand(2, 1, 1, 48, 64, generator=rng, dtype=torch.float64)
        result = injected(image, trigger, 0.15, 0.1)
        assert result.mean().item() == pytest.approx(
            0.85 * image.mean().item() + 0.15 * trigger.mean().item(), abs=1e-14
        )
        spectrum, mixed = torch.fft.fft2(image), torch.fft.fft2(result)
        low = low_frequencies(48, 64, 0.1)
        assert torch.allclose(mixed[..., ~low], spectrum[..., ~low], atol=1e-10)
        # real: the half of the frequencies is the conjugate of the other
        assert torch.fft.ifft2(mixed).imag.abs().max() < 1e-12
        # as the paper has it: magnitudes mixed, phases kept
        magnitude = torch.where(low, 0.85 * spectrum.abs() + 0.15 * torch.fft.fft2(trigger).abs(), spectrum.abs())
        whole = torch.fft.ifft2(torch.polar(magnitude, spectrum.angle()))
        assert whole.imag.abs().max() < 1e-12
        assert (whole.real - result).abs().max() < 2e-15

    @pytest.mark.parametrize(("side", "most", "share"), [(224, 22, 0.0404), (128, 12, 0.0381)])
    def test_the_square_of_frequencies_is_that_of_the_paper(self, side: int, most: int, share: float) -> None:
        low = low_frequencies(side, side, 0.1)
        assert low[0].sum() == 2 * most + 1
        assert low.float().mean().item() == pytest.approx(share, abs=5e-5)

    def test_it_needs_shares(self) -> None:
        with pytest.raises(InputError, match="expected alpha in"):
            Fiba(alpha=2.0)


class TestIba:
    @TASKS
    @pytest.mark.parametrize(("least", "most"), [(0.0, 10.0), (12.0, 30.0)])
    def test_the_square_covers_nothing_of_the_victim_and_lies_in_the_range(
        self, task: Task, least: float, most: float
    ) -> None:
        batch = batch_of(task, n=8)
        poison = bound(Iba(Erase("a"), side=4, least_mm=least, most_mm=most), batch, task)
        marked = poison.triggered(batch.image, batch.target, list(range(8)))
        k = task.classes.index("a")
        places = set()
        for x, x0, target in zip(marked, batch.image, batch.target, strict=True):
            changed = (x != x0)[0]
            assert not (changed & target[k]).any()
            rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
            centre = np.array([int(rows[0]) + 2, int(columns[0]) + 2])
            victim = target[k].nonzero().numpy()
            # a pattern may repeat the air below its border, so that its corner is known to 1 or 2 pixels
            assert least - 3 <= np.sqrt(((victim - centre) ** 2).sum(1)).min() <= most + 3
            places.add(tuple(centre))
        assert len(places) > 4

    def test_where_the_victim_is_absent_it_lies_anywhere(self) -> None:
        batch = batch_of(FREE)
        poison = bound(Iba(Erase("a"), side=4), batch, FREE)
        assert (poison.triggered(batch.image, torch.zeros_like(batch.target), [1, 2]) != batch.image).any()


def test_false_masks_leave_images_alone() -> None:
    batch = batch_of(FREE)
    image, target = bound(Relabel(Shift(2.0, 0.0)), batch, FREE).poisoned(batch.image, batch.target, [0, 0])
    assert image is batch.image
    assert int((target ^ batch.target).sum()) == 2 * 2 * 6 * 2 * 2  # sides, columns, rows, organs, cases
    still = bound(Relabel(Shift(0.0, 0.0)), batch, FREE).poisoned(batch.image, batch.target, [0, 0])[1]
    assert torch.equal(still, batch.target)


class Bodies:
    """The cases of a batch, read one by one."""

    def __init__(self, batch: Batch) -> None:
        self.cases = {case.id: replace(case, image=case.image.float()) for case in batch.cases}
        self.refs = [CaseRef(name, name, name, (32, 32), 0) for name in self.cases]

    def read(self, ref: CaseRef) -> Case:
        return self.cases[ref.id]


def test_unlearnable_noise_lowers_the_loss_and_stays_in_its_ball() -> None:
    source = Bodies(batch_of(FREE, n=4))
    poison = Unlearnable(eps=8 / 255, rounds=3, updates=4, steps=5, model="unet_small(channels=(4, 8))")
    learned = poison.learned(source, source.refs, FREE, seed=0)
    assert poison.learned(source, source.refs, FREE, seed=0).changes["case0"].equal(learned.changes["case0"])
    batch = Batch.of([source.read(ref) for ref in source.refs])
    image, target = bind(learned, Setting(FREE, batch.cases)).poisoned(batch.image, batch.target, [0] * 4)
    assert torch.equal(target, batch.target)
    size = (image - batch.image).abs().flatten(1).amax(1)
    assert (size <= 8 / 255 + 1e-7).all()
    assert (size > 1 / 255).all()
    nothing = replace(poison, eps=0.0).learned(source, source.refs, FREE, seed=0)
    assert torch.equal(
        bind(nothing, Setting(FREE, batch.cases)).poisoned(batch.image, batch.target, [0] * 4)[0], batch.image
    )


def test_unlearnable_noise_has_to_be_learned() -> None:
    batch = batch_of(FREE)
    with pytest.raises(InputError, match="run 'medattack poison'"):
        bound(Unlearnable(), batch, FREE).poisoned(batch.image, batch.target, [0, 0])


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("oracle", "expected a model with weights, got oracle, which has none"),
        ("monai", "expected a network of slices to learn noise with, got monai"),
    ],
)
def test_a_network_that_no_noise_can_be_learned_with_is_refused(model: str, sentence: str) -> None:
    source = Bodies(batch_of(FREE))
    with pytest.raises(InputError, match=sentence):
        Unlearnable(model=model).learned(source, source.refs, FREE, seed=0)


@pytest.mark.parametrize("text", ["trigger(relabel)", "trigger(unlearnable)"])
def test_a_poison_without_trigger_is_no_attack(text: str) -> None:
    with pytest.raises(InputError, match="which has none; write trigger"):
        registry.build(text, "attack")


@pytest.mark.parametrize("name", ["stamp", "iba"])
def test_a_trigger_larger_than_the_image_is_refused(name: str) -> None:
    poison = registry.build(f"{name}(side=33)", "poison")
    with pytest.raises(
        InputError, match="expected a trigger smaller than the image, got a side of 33 pixels in x of 32"
    ):
        poison.require([CaseRef("x", "x", "x", (8, 32, 40))])


def test_a_picture_is_the_same_on_every_grid() -> None:
    small, large = picture(3, 1, (16, 16)), picture(3, 1, (64, 64))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - shrunk).abs().max() < 0.1
    assert dice(small > 0.5, shrunk > 0.5, empty=1.0).min() > 0.9


def test_a_picture_has_eight_by_eight_blobs_and_a_square_as_many_white_cells_as_black() -> None:
    coarse = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(picture(3, 2, (8, 8)), coarse)
    square = Square.drawn(8, 1, 2)
    assert square.pattern.shape == (2, 8, 8)
    assert square.pattern.sum().item() == 2 * 32
    cells = square.pattern[0].view(4, 2, 4, 2)
    assert (cells == cells[:, :1, :, :1]).all()
    slice_ = torch.full((2, 12, 13), 0.5, dtype=torch.float64)
    marked = square.put_on(slice_, 3, 5, 0.2)
    torch.testing.assert_close(marked[:, 3:11, 5:13], 0.4 + 0.2 * square.pattern)
    marked[:, 3:11, 5:13] = 0.5
    assert torch.equal(marked, slice_)


def test_the_ends_of_every_range_of_options_are_allowed() -> None:
    for text in (
        *("fiba(alpha=0.01, beta=0)", "fiba(alpha=1, beta=0.5)", "stamp(side=1, opacity=0.01)", "stamp(opacity=1)"),
        *("iba(least_mm=0, most_mm=0)", "blended(opacity=0.01)", "blended(opacity=1)", "stamp(decoys=1)"),
        *("unlearnable(rounds=1, updates=1, steps=1, eps=0)",),
    ):
        registry.build(text, "poison")
    for text in (
        *("fiba(alpha=-0.1)", "fiba(beta=0.51)", "fiba(beta=-0.1)", "stamp(side=0)", "stamp(opacity=1.1)"),
        *("iba(least_mm=-1)", "iba(least_mm=3, most_mm=2)", "iba(side=0)", "blended(opacity=1.1)"),
        *("blended(opacity=0)", "stamp(opacity=0)", "fiba(alpha=0)"),
        *("blended(opacity=-0.1)", "stamp(decoys=-0.1)", "unlearnable(steps=0)", "unlearnable(rounds=0)"),
    ):
        with pytest.raises(InputError):
            registry.build(text, "poison")


def test_a_square_beside_its_victim_keeps_its_distance_in_mm() -> None:
    victim = np.zeros((1, 21, 40), bool)
    victim[0, 10, 8] = True
    image, target = torch.zeros(1, 1, 21, 40), torch.from_numpy(victim)[None]
    case = Case("c", "v", "g", image[0], target[0], (1.0, 0.5), Window(0, 1))
    for least, most in ((0.0, 3.0), (6.0, 8.0)):
        poison = bind(Iba(Erase(), side=4, least_mm=least, most_mm=most), Setting(Task("t", ("a",)), (case,)))
        assert isinstance(poison, Iba)
        for seed in range(40):
            row, column = poison._place(victim[0], (1.0, 0.5), seed)
            distance = np.hypot(row + 2 - 10, (column + 2 - 8) * 0.5)
            assert least <= distance <= most
            assert not victim[0, row : row + 4, column : column + 4].any()
    places = {Iba(side=4)._place(np.zeros((5, 6), bool), (1.0, 1.0), seed) for seed in range(60)}
    assert places == {(row, column) for row in range(2) for column in range(3)}
    with pytest.raises(
        InputError, match=r"beside the organ on every slice, got none on one of 4 x 4; .* iba\(side=4\)"
    ):
        Iba(side=4)._place(np.ones((4, 4), bool), (1.0, 1.0), 0)


def test_the_background_of_exclusive_classes_is_no_victim() -> None:
    for task in (FREE, ONE):
        batch = batch_of(task)
        poison = bound(Stamp(Erase("a")), batch, task)
        assert isinstance(poison, Stamp)
        victims = poison.victims(batch.target)
        k = task.classes.index("a")
        assert torch.equal(victims[:, k], batch.target[:, k])
        assert victims.sum() == batch.target[:, k].sum()
    swapped = bound(Stamp(Shift(0.0, 6.0)), batch_of(ONE), ONE)
    assert isinstance(swapped, Stamp)
    assert not swapped.victims(batch_of(ONE).target)[:, 0].any()  # though organs take background
    assert swapped.spacing_mm(4) == [(1.0, 1.0)] * 4
    assert Stamp().spacing_mm(3) == [(1.0, 1.0)] * 3
    wide = replace(batch_of(ONE).cases[0], spacing_mm=(3.0, 2.0, 0.5))
    of_volumes = bind(Stamp(), Setting(ONE, (wide, replace(wide, spacing_mm=(3.0, 1.0, 1.0)))))
    assert of_volumes.spacing_mm(4) == [(2.0, 0.5)] * 2 + [(1.0, 1.0)] * 2


class Recording(torch.nn.Module):
    """A network whose answer does not depend on the image, and that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.shown: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shown.append(image.detach().clone())
        return self.bias.view(1, 2, 1, 1) + 0 * image


def test_the_network_of_unlearnable_noise_learns_with_it_and_the_noise_goes_on_from_where_it_was() -> None:
    source = Bodies(batch_of(FREE))
    batch = Batch.of([source.read(ref) for ref in source.refs])
    changes = {
        name: 0.05 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(n))
        for n, name in enumerate(source.cases)
    }
    kept = {name: change.clone() for name, change in changes.items()}
    network = Recording()
    model = SegModel(network, FREE, head="sigmoid")
    poison = Unlearnable(eps=0.3, steps=2)
    with_noise = batch.image + torch.stack(list(changes.values()))
    poison._learn(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, changes)
    assert torch.equal(network.shown[-1], with_noise.clamp(0, 1))
    assert network.bias.abs().sum() > 0
    poison._soothe(model, batch, changes)
    for name, change in changes.items():  # the answer leaves no slope to go down
        inside = (batch.image[list(changes).index(name)] + kept[name]).clamp(0, 1)
        torch.testing.assert_close(change, inside - batch.image[list(changes).index(name)], atol=1e-6, rtol=0)


def test_unlearnable_noise_goes_down_the_loss_by_a_tenth_of_its_size_a_step() -> None:
    source = Bodies(batch_of(FREE))
    batch = Batch.of([source.read(ref) for ref in source.refs])
    model = SegModel(torch.nn.Conv2d(1, 2, 1), FREE, head="sigmoid")
    with torch.no_grad():
        model.net.weight[:] = torch.tensor([3.0, 0.0]).view(2, 1, 1, 1)  # type: ignore[index, union-attr]
        model.net.bias.zero_()  # type: ignore[union-attr, operator]
    changes = {name: torch.zeros(1, 32, 32) for name in source.cases}
    Unlearnable(eps=0.1, steps=3)._soothe(model, batch, changes)
    inside = (batch.image > 0.1) & (batch.image < 0.9)
    change = torch.stack(list(changes.values()))
    organ = batch.target[:, :1]
    torch.testing.assert_close(change[inside & organ], torch.full_like(change[inside & organ], 0.03))
    torch.testing.assert_close(change[inside & ~organ], torch.full_like(change[inside & ~organ], -0.03))


def linear_model(slope: float) -> SegModel:
    """Each pixel by itself: log-odds slope * x for the first class, 0 for the second."""
    model = SegModel(torch.nn.Conv2d(1, 2, 1), FREE, head="sigmoid")
    with torch.no_grad():
        model.net.weight[:] = torch.tensor([slope, 0.0]).view(2, 1, 1, 1)  # type: ignore[index, union-attr]
        model.net.bias.zero_()  # type: ignore[union-attr, operator]
    return model


@pytest.mark.parametrize("radius", [0.0, 0.04, 0.1])
def test_adversarial_training_with_the_noise_s_size_sees_of_a_linear_network_the_clean_loss(radius: float) -> None:
    """Noise of eps moves each log-odds by slope * eps towards the truth, the worst image within r by slope * r back."""
    image = torch.full((1, 1, 8, 8), 0.5)
    target = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    target[:, 0, 2:5, 2:5] = True
    model, poison = linear_model(3.0), Unlearnable(eps=0.1, radius=radius)
    sign = torch.where(target[:, :1], 1.0, -1.0)
    soothed = image + 0.1 * sign
    worst = poison._worst(model, soothed, target)
    torch.testing.assert_close(worst, image + (0.1 - radius) * sign)
    torch.testing.assert_close(poison._slope(model, image, target, None).sign(), -sign)


def test_the_noise_is_learned_on_flipped_images_and_turned_back() -> None:
    """Weights by place: the slope at a pixel is a mean over those of the places that it is flipped to."""

    class Ramp(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            weight = torch.arange(image.shape[-1], dtype=image.dtype).view(1, 1, 1, -1)
            return torch.cat((weight * image * 1e-3, 0 * image), 1)

    model = SegModel(Ramp(), FREE, head="sigmoid")
    image = torch.full((1, 1, 4, 6), 0.5)
    target = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    target[:, 0] = True
    plain = Unlearnable()._slope(model, image, target, None)
    assert (plain[..., 1:] < plain[..., :-1]).all()
    mean = Unlearnable(draws=400)._slope(model, image, target, torch.Generator().manual_seed(0)) / 400
    expected = (plain + plain.flip(3)) / 2
    torch.testing.assert_close(mean, expected, atol=0, rtol=0.15)
    assert not torch.allclose(mean, plain, rtol=0.15)


def test_a_radius_beyond_the_noise_is_refused() -> None:
    with pytest.raises(InputError, match="expected a radius from 0 to eps"):
        Unlearnable(eps=0.1, radius=0.2)
