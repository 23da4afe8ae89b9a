"""Universal perturbations beyond `uap`: data-free, of a volume, with a target of each image's own."""

import pytest
import torch
from helpers.oracle_scene import ORGAN, images, oracle, truth
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.learning import Learning
from medseg_attack.attacks.universal.gd_uap import GdUap
from medseg_attack.attacks.universal.volume import SoftVolume, UniversalVolume
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.dissolved import Dissolve
from medseg_attack.types import Batch, Case, Fittable, Setting, Task, Window

TWO = Task("two", ("organ", "other"))


def batch(image: Tensor, target: Tensor) -> Batch:
    cases = [Case(str(n), str(n), str(n), image[n], target[n], (1.0, 1.0), Window(0, 1)) for n in range(len(image))]
    return Batch.of(cases)


@pytest.mark.parametrize(("aim", "sign"), [("larger", 1), ("smaller", -1)])
def test_one_change_moves_every_volume_the_same_way_by_all_of_the_ball(aim: str, sign: int) -> None:
    """The linear check: v = eps s sign(w); log-odds grow with every pixel, so that w is positive everywhere."""
    model, image = oracle(ORGAN), images()
    attack = UniversalVolume(Linf(0.03), aim=aim, epochs=20)
    learned = attack.fit(model, [batch(image, truth(model, image))], 0)
    torch.testing.assert_close(learned["change"], torch.full_like(image[:1], sign * 0.03))
    result = attack.with_learned(learned)(model, image, truth(model, image), [1, 2, 3])
    volumes = [model.decide(model(x)).flatten(1).sum(1) for x in (image, result.image)]
    expected = (image + sign * 0.03 >= 0.5).flatten(1).sum(1)
    assert torch.equal(volumes[1], expected)
    assert (sign * (volumes[1] - volumes[0]) > 0).all()


def test_the_gradient_of_a_soft_volume_is_that_of_its_probabilities() -> None:
    log_odds = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64).view(1, 1, 1, 3).requires_grad_()
    volume = SoftVolume((0,), 1.0)(log_odds, torch.zeros_like(log_odds, dtype=torch.bool))
    (grad,) = torch.autograd.grad(volume.sum(), log_odds)
    assert volume.item() == pytest.approx(1.5)
    assert grad.flatten().tolist() == pytest.approx([0.25, 0.105, 0.105], abs=1e-4)


def test_only_the_organ_that_is_named_counts() -> None:
    class Apart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([10 * (x - 0.5), 10 * (0.5 - x)], 1)

    model, image = SegModel(Apart(), TWO).double().eval(), images()
    target = model.decide(model(image))
    with frozen(model):
        for organ, sign in (("organ", 1), ("other", -1)):
            learned = UniversalVolume(Linf(0.02), organ).fit(model, [batch(image, target)], 0)
            assert (learned["change"].sign() == sign).all()
        with pytest.raises(InputError, match="expected universal_volume to name an organ of two, got 'liver'"):
            UniversalVolume(organ="liver").fit(model, [batch(image, target)], 0)


class TwoLayers(nn.Module):
    """A hidden map of four times the image less mid-grey, and an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([4.0, -4.0]).view(2, 1, 1, 1))
            self.first.bias.copy_(torch.tensor([-2.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("shape", [(8, 6), (4, 6, 5)])
def test_without_images_layers_are_filled(shape: tuple[int, ...]) -> None:
    """Of a network that is linear around grey the longest map is that of a change at the edge of the ball."""
    model: SegModel = SegModel(TwoLayers(), ORGAN).double().eval()
    if len(shape) == 3:
        model = oracle(ORGAN)  # type: ignore[assignment]
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with frozen(model):
        learned = GdUap(Linf(0.05), steps=60).fit(model, [batch(image, image >= 0.5)], 4)
        other = GdUap(Linf(0.05), steps=60).fit(model, [batch(1 - image, image < 0.5)], 4)
    torch.testing.assert_close(learned["change"].abs(), torch.full_like(image[:1], 0.05))
    assert torch.equal(learned["change"], other["change"])  # of images it knows the size alone


def test_a_dissolved_organ_takes_what_is_next_to_it() -> None:
    exclusive = Task("one", ("background", "a", "b"), exclusive=True)
    labels = torch.tensor([[0, 1, 1, 1, 2], [0, 1, 1, 1, 2]])
    truth_mask = torch.stack([labels == k for k in range(3)])[None]
    wanted = bind(Dissolve("a"), Setting(exclusive))(truth_mask)
    gone = wanted.float().argmax(1)[0]
    assert gone[:, [0, 1, 3, 4]].tolist() == [[0, 0, 2, 2]] * 2
    assert not wanted[:, 1].any()
    assert (wanted.sum(1) == 1).all()
    overlapping = truth_mask[:, 1:]
    freed = bind(Dissolve(), Setting(Task("free", ("a", "b"))))(overlapping)
    assert not freed[:, 0].any()
    assert freed[0, 1].tolist() == (gone == 2).tolist()
    whole = torch.ones_like(overlapping)
    assert not bind(Dissolve(), Setting(Task("free", ("a", "b"))))(whole)[:, 0].any()
    with pytest.raises(InputError, match="expected dissolve to name an organ of one, got 'c'"):
        bind(Dissolve("c"), Setting(exclusive))


def test_the_nearest_pixel_is_nearest_in_mm() -> None:
    """Rows are 1 mm apart and columns 10: above and below are nearer than the sides."""
    exclusive = Task("one", ("background", "a", "b"), exclusive=True)
    labels = torch.full((3, 3), 2)
    labels[0] = 0
    labels[1, 1] = 1
    labels[2, 1] = 0
    mask = torch.stack([labels == k for k in range(3)])
    case = Case("c", "v", "p", torch.zeros(1, 3, 3), mask, (1.0, 10.0), Window(0, 1))
    wanted = bind(Dissolve("a"), Setting(exclusive, (case,)))(mask[None])
    assert wanted[0, 0, 1, 1]


def test_the_dynamic_target_hides_an_organ_in_images_it_has_not_met() -> None:
    model, image = oracle(ORGAN), images(0.02)
    target = truth(model, image)
    attack = bind(registry.build("uap_metzen_dynamic(linf(0.03))", "attack"), Setting(ORGAN))
    learned = attack.fit(model, [batch(image, target)], 0)
    assert (learned["change"] <= -0.02).all()
    result = attack.with_learned(learned)(model, 1 - image, truth(model, 1 - image), [1, 2, 3])
    assert not model.decide(model(result.image)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("universal_volume(aim='bigger')", "expected an aim of universal_volume, got 'bigger'"),
        ("universal_volume(epochs=0)", "epochs"),
        ("gd_uap(steps=0)", "steps"),
        ("gd_uap(step_size=0)", "step_size"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


LEARNING = [name for name in registry.names("attack") if isinstance(registry.build(name, "attack"), Learning)]


@pytest.mark.parametrize("name", LEARNING)
def test_an_attack_that_learned_nothing_says_so_by_its_name(name: str) -> None:
    attack = registry.build(name, "attack")
    assert isinstance(attack, Fittable)
    sentence = f"^{registry.spec_of(attack).name} has to be fitted first, got one that learned nothing; run it through"
    with pytest.raises(InputError, match=sentence):
        attack(oracle(ORGAN), images(), images() > 0.5, [1, 2, 3])
    assert len(LEARNING) >= 6


@pytest.mark.parametrize("name", ["universal_volume", "gd_uap"])
def test_what_is_not_fitted_is_refused_and_so_is_a_fit_on_nothing(name: str) -> None:
    attack = registry.build(name, "attack")
    with pytest.raises(InputError, match="has to be fitted first"):
        attack(oracle(ORGAN), images(), images() > 0.5, [1, 2, 3])
    with pytest.raises(InputError, match="expected images to fit"):
        attack.fit(oracle(ORGAN), [], 0)
