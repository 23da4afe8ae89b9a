"""MAFL: features that leave those of the image, or come to another patient's."""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import blobs
from helpers.detectors import of_own_patients
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.gradient.mafl import Mafl
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.library.models import wrap
from medseg_attack.models.hidden_maps import features_of, maps_of
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.fields import blurred
from medseg_attack.numerics.samples import TINY
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.stored import AnotherPatient
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Case, CaseRef, Donors, LogOdds, Mask, Setting

SEEDS = [1, 2, 3]


class Mean(nn.Module):
    """One answer for a whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


def nothing(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
    return 0 * log_odds.flatten(1).sum(1)


@dataclass(frozen=True)
class Shelf:
    cases: tuple[Case, ...]

    def read(self, ref: CaseRef) -> Case:
        return next(case for case in self.cases if case.id == ref.id)


def cosine(x: Tensor, other: Tensor) -> Tensor:
    with frozen(blobs.healthy()) as model, torch.no_grad():
        first, second = (maps_of(model, image)[1][-2].flatten(1) for image in (x, other))
    return torch.cosine_similarity(first, second, eps=TINY)


def test_features_leave_those_of_the_untouched_image() -> None:
    batch = blobs.batch(3)
    attack = Mafl(Linf(0.05), nothing, steps=12, smoothness=0.0)
    with frozen(blobs.healthy()) as model:
        noise = registry.build("noise(linf(0.05))", "attack")(model, batch.image, batch.target, SEEDS).image
        far = replace(attack, steps=1, step_size=0.0)(model, batch.image, batch.target, SEEDS)
        x = attack(model, batch.image, batch.target, SEEDS).image
    assert torch.isfinite(far.image).all()
    moved = (x != batch.image).flatten(1).any(1)  # the least harmful image of all may be the untouched one
    assert (cosine(x, batch.image) < cosine(noise, batch.image))[moved].all()
    assert moved.any()


class Promptable(nn.Module):
    """An encoder of two layers, of which prompts see the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh())
        self.pair = nn.Identity()

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        code = self.encoder(images)
        whole = nn.functional.interpolate(code, images.shape[2:])
        return 20 * (images + 0.1 * whole[:, :2] - 0.4) - boxes.mean(2)[..., None, None] / 50


class OneByOne(Promptable):
    """The same network, whose encoder sees one image at a time."""

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        pairs = zip(images.split(1), boxes.split(1), strict=True)
        return torch.cat([super(OneByOne, self).forward(*each) for each in pairs])


def promptable(margin: float = 10.0, encoder: str = "encoder", net_class: type[Promptable] = Promptable) -> SegModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = net_class().eval()
    return wrap(net, blobs.TASK.classes, False, prompt="box", margin=margin, encoder=encoder)


def test_the_encoder_that_a_model_names_is_what_features_are_of() -> None:
    batch, model, healthy = blobs.batch(3), promptable(), blobs.healthy()
    with torch.no_grad():
        _, features = features_of(bind(model, Setting(model.task, batch.cases)), batch.image)
        assert torch.equal(features, model.net.net.net.encoder(batch.image))  # type: ignore[union-attr]
        _, deepest = features_of(healthy, batch.image)
        assert torch.equal(deepest, maps_of(healthy, batch.image)[1][-2])


def test_an_encoder_that_sees_one_image_at_a_time_has_the_features_of_each() -> None:
    batch = blobs.batch(3)
    together, each = (
        features_of(bind(promptable(net_class=of), Setting(blobs.TASK, batch.cases)), batch.image)[1]
        for of in (Promptable, OneByOne)
    )
    torch.testing.assert_close(each, together)


def test_an_encoder_that_answers_once_for_several_images_is_refused() -> None:
    batch, model = blobs.batch(3), promptable()
    model.net.net.net.encoder.append(Mean())  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"expected a row for each of 3 images from .*encoder.*, got 1; name another"):
        features_of(bind(model, Setting(blobs.TASK, batch.cases)), batch.image)


def test_without_the_objective_a_step_climbs_the_cosine_of_the_encoder_whatever_the_prompts() -> None:
    batch, x = blobs.batch(3), torch.zeros(0)
    attack = Mafl(Linf(0.05), steps=1, step_size=1.0, smoothness=0.0, weight=0.0)
    start = attack.ball.sample(batch.image, SEEDS).requires_grad_()
    for margin in (0.0, 10.0, 20.0):
        model = promptable(margin)
        encoder = model.net.net.net.encoder  # type: ignore[union-attr]
        own, wanted = (encoder(image).flatten(1) for image in (start, batch.image))
        (grad,) = torch.autograd.grad((1 - torch.cosine_similarity(own, wanted, eps=TINY)).sum(), start)
        x = attack.ball.project(start.detach() + attack.ball.step(grad, start.detach()), batch.image)
        setting = Setting(model.task, batch.cases)
        with frozen(model) as still:
            result = bind(attack, setting)(bind(still, setting), batch.image, batch.target, SEEDS).image
        known = torch.stack([batch.image, start.detach(), x])  # the most harmful of three is returned
        assert (result == known).flatten(2).all(2).any(0).all()
        assert (result == x).flatten(1).all(1).any()


class Encoded(Promptable):
    """The same network without prompts, whose answer is the same for the same image."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images, torch.zeros(1, 1, 1))


def test_iterates_are_those_of_the_formula_and_the_most_harmful_is_returned() -> None:
    """The image, then a random start and three steps of momentum on the whole sum; the last is judged alone."""
    batch, ball, shown = blobs.batch(3), L2(2.0), list[Tensor]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Encoded().eval()
    encoder = net.encoder
    encoder.register_forward_hook(lambda layer, inputs, output: shown.append(inputs[0].detach().clone()))

    def rising(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
        return (1 + progress) * bce(log_odds, target)

    attack = Mafl(ball, rising, steps=3, momentum=0.5, features=0.7, smoothness=0.2, weight=3.0)
    with frozen(wrap(net, blobs.TASK.classes, False, encoder="encoder")) as model:
        result = attack(model, batch.image, batch.target, SEEDS)
        visited = list(shown)
        x, direction = ball.sample(batch.image, SEEDS), torch.zeros_like(batch.image)
        iterates = [batch.image, x]
        for step in range(3):
            x = x.detach().requires_grad_()
            cosines = torch.cosine_similarity(encoder(x).flatten(1), encoder(batch.image).flatten(1), eps=TINY)
            low = (blurred(x - batch.image, 13) / (2 / 32)).square().flatten(1).mean(1)
            loss = 3 * (1 + step / 3) * bce(model(x), batch.target) - 0.7 * cosines - 0.2 * low
            (grad,) = torch.autograd.grad(loss.sum(), x)
            direction = 0.5 * direction + grad / grad.abs().mean((1, 2, 3), keepdim=True)
            x = ball.project(x.detach() + 0.25 * ball.step(direction, x.detach()), batch.image)
            iterates.append(x)
        torch.testing.assert_close(torch.stack(visited), torch.stack(iterates), atol=1e-6, rtol=0)
        harms = torch.stack([judge(model, ball, each, batch.image, batch.target).harm for each in visited])
    assert torch.equal(result.harm, harms.amax(0))


def test_with_a_donor_a_step_climbs_the_cosine_with_its_features() -> None:
    batch, shown = blobs.batch(3), list[Tensor]()
    cases = tuple(
        Case(f"s{n}", f"v{n}", f"p{n}", batch.image[n], batch.target[n], (1.0, 1.0), batch.cases[n].window)
        for n in range(3)
    )
    refs = tuple(CaseRef(case.id, case.volume, case.group, tuple(case.image.shape[1:])) for case in cases)
    donors = Donors(Shelf(cases), refs)
    goal = AnotherPatient()
    attack = Mafl(L2(2.0), Toward(nothing, goal), steps=1, step_size=1.0, features=0.5, smoothness=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Encoded().eval()
    encoder = net.encoder
    encoder.register_forward_hook(lambda layer, inputs, output: shown.append(inputs[0].detach().clone()))
    with frozen(wrap(net, blobs.TASK.classes, False, encoder="encoder")) as model:
        bound = bind(attack, Setting(blobs.TASK, cases, donors))
        bound(model, batch.image, batch.target, SEEDS)
        wanted, untouched, start, end = shown[:4]
        assert torch.equal(untouched, batch.image)
        assert torch.equal(wanted, torch.stack([goal.donor_of(case, donors).image for case in cases]))
        x = start.requires_grad_()
        cosines = torch.cosine_similarity(encoder(x).flatten(1), encoder(wanted).flatten(1), eps=TINY)
        low = (blurred(x - batch.image, 13) / (2 / 32)).square().flatten(1).mean(1)
        (grad,) = torch.autograd.grad((0.5 * cosines - 0.3 * low).sum(), x)
    expected = attack.ball.project(start.detach() + attack.ball.step(grad, start.detach()), batch.image)
    torch.testing.assert_close(end, expected, atol=1e-6, rtol=0)
    assert Mafl(weight=0).features_alone
    assert not Mafl().features_alone


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("x", "unknown encoder: expected a part of the network, got 'x'; there is: encoder, encoder.0"),
        ("pair", "expected a tensor from net.net.pair, the encoder of the network, got no call"),
    ],
)
def test_an_encoder_that_is_not_there_or_not_called_is_refused(encoder: str, message: str) -> None:
    batch = blobs.batch(3)
    with pytest.raises(InputError, match=message):
        features_of(bind(promptable(encoder=encoder), Setting(blobs.TASK, batch.cases)), batch.image)


def test_features_come_to_those_of_the_patient_whose_mask_is_wanted() -> None:
    batch = blobs.batch(3)
    cases = tuple(
        Case(f"s{n}", f"v{n}", f"p{n}", batch.image[n], batch.target[n], (1.0, 1.0), batch.cases[n].window)
        for n in range(3)
    )
    refs = tuple(CaseRef(case.id, case.volume, case.group, tuple(case.image.shape[1:])) for case in cases)
    donors = Donors(Shelf(cases), refs)
    goal = AnotherPatient()
    attack = bind(Mafl(Linf(0.1), Toward(nothing, goal), steps=15, smoothness=0.0), Setting(blobs.TASK, cases, donors))
    wanted = torch.stack([goal.donor_of(case, donors).image for case in cases])
    with frozen(blobs.healthy()) as model:
        x = attack(model, batch.image, batch.target, SEEDS).image
        start = attack.ball.sample(batch.image, SEEDS)
    assert torch.equal(attack._donors(batch.image), wanted)
    assert (cosine(x, wanted) >= cosine(start, wanted)).all()
    assert (cosine(x, wanted) > cosine(start, wanted)).any()


class Stubborn(Encoded):
    """The same network, which is wrong on these images and right on all others."""

    def __init__(self, image: Tensor, target: Mask) -> None:
        super().__init__()
        self.image, self.truth = image, target

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        answer = super().forward(images)
        same = (images == self.image).flatten(1).all(1).view(-1, 1, 1, 1)
        return 0 * answer + torch.where(same, ~self.truth, self.truth) * 20.0 - 10


@pytest.mark.parametrize("donor", [False, True])
def test_the_untouched_image_is_among_those_of_which_the_most_harmful_is_returned(donor: bool) -> None:
    batch = of_own_patients(blobs.batch(3))
    refs = tuple(CaseRef(case.id, case.volume, case.group, tuple(case.image.shape[1:])) for case in batch.cases)
    setting = Setting(blobs.TASK, batch.cases, Donors(Shelf(batch.cases), refs))
    attack = Mafl(L2(2.0), Toward(bce, AnotherPatient()) if donor else bce, steps=2)
    with frozen(
        wrap(Stubborn(batch.image, batch.target).eval(), blobs.TASK.classes, False, encoder="encoder")
    ) as model:
        result = bind(attack, setting)(model, batch.image, batch.target, SEEDS)
    assert torch.equal(result.image, batch.image)
    assert (result.harm > 0.9).all()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (None, "expected another_patient to be bound to a task"),
        (Setting(blobs.TASK, blobs.batch(3).cases), "another_patient takes masks of a data set, got none"),
    ],
)
def test_a_goal_of_another_patient_s_needs_other_patients(setting: Setting | None, sentence: str) -> None:
    batch, attack = blobs.batch(3), Mafl(Linf(0.1), Toward(bce, AnotherPatient()), steps=1)
    with frozen(blobs.healthy()) as model, pytest.raises(InputError, match=sentence):
        (bind(attack, setting) if setting else attack)(model, batch.image, batch.target, SEEDS)


def test_low_frequencies_are_paid_for() -> None:
    batch = blobs.batch(3)
    lows = []
    for smoothness in (0.0, 50.0):
        attack = Mafl(Linf(0.05), steps=12, smoothness=smoothness)
        with frozen(blobs.healthy()) as model:
            x = attack(model, batch.image, batch.target, SEEDS).image
        lows.append(attack._lowness(x, batch.image).mean())
    assert lows[1] < lows[0]


@pytest.mark.parametrize("option", ["steps=0", "features=-1", "smoothness=-1", "momentum=-0.5"])
def test_what_makes_no_sense_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=option.partition("=")[0]):
        registry.build(f"mafl({option})", "attack")
