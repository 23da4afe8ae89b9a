"""Volumes that an attack makes larger or smaller, against what its ball allows."""

import pytest
import torch
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.registry import build
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Case, Image, LogOdds, Mask, Setting, Stack, Task, Window

TASK = Task("heart", ("lv", "rv"))


class Threshold:
    """Each pixel is in `lv` above 1/2 and in `rv` above 3/4, whatever the others are."""

    task = TASK

    def __call__(self, image: Image) -> LogOdds:
        return 20 * torch.cat([image - 0.5, image - 0.75], 1)

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0


IMAGE = torch.linspace(0, 1, 100, dtype=torch.float64).view(1, 1, 10, 10).repeat(2, 1, 1, 1)
TARGET = torch.zeros(2, 2, 10, 10, dtype=torch.bool)


def volumes(text: str, *phases: str) -> Tensor:
    """Pixels of lv and of rv in both images under the attack."""
    attack: Attack = build(text, "attack")
    if phases:
        cases = [
            Case(str(n), str(n), "p", image, mask, (1.0, 1.0), Window(0, 1), Stack(0, 1, 1.0), phase=phase)  # type: ignore[arg-type]
            for n, (image, mask, phase) in enumerate(zip(IMAGE, TARGET, phases, strict=True))
        ]
        attack = bind(attack, Setting(TASK, tuple(cases)))
    model = Threshold()
    result = attack(model, IMAGE, TARGET, [1, 2])
    assert (attack.ball.size(result.image, IMAGE) <= 0.1 + 1e-9).all()
    return model.decide(model(result.image)).flatten(2).sum(2)


def within(low: float) -> int:
    """Pixels of the image that are at least `low`."""
    return int((IMAGE[0] >= low - 1e-9).sum())


@pytest.mark.parametrize(("aim", "shift"), [("larger", -0.1), ("smaller", 0.1)])
def test_every_pixel_within_eps_of_the_threshold_crosses_it(aim: str, shift: float) -> None:
    lv, rv = within(0.5 + shift), within(0.75 + shift)
    assert volumes(f"volume_bias(linf(0.1), aim='{aim}')").tolist() == [[lv, rv]] * 2


def test_one_organ_alone_is_measured() -> None:
    class Opposed(Threshold):
        """`rv` is below 1/2: where one grows the other shrinks."""

        def __call__(self, image: Image) -> LogOdds:
            return 20 * torch.cat([image - 0.5, 0.5 - image], 1)

    attack = build("volume_bias(linf(0.1), organ='rv')", "attack")
    model = Opposed()
    result = attack(model, IMAGE, TARGET, [1, 2])
    assert model.decide(model(result.image))[0, 1].sum() == (IMAGE[0] <= 0.6 + 1e-9).sum()


def test_the_ejection_fraction_is_lowered_by_both_phases() -> None:
    less = volumes("volume_bias(linf(0.1), 'lv', 'less ejected')", "ED", "ES")[:, 0].tolist()
    assert less == [within(0.6), within(0.4)]
    more = volumes("volume_bias(linf(0.1), 'lv', 'more ejected')", "ED", "ES")[:, 0].tolist()
    assert more == [within(0.4), within(0.6)]


def test_the_hard_volume_decides_which_iterate_is_returned() -> None:
    """Steps that are too long go on to the other side of the threshold and back; no iterate before is lost."""

    class Peak(Threshold):
        """In `lv` between 0.45 and 0.55 alone; both ends of the ball are out of it."""

        def __call__(self, image: Image) -> LogOdds:
            return (0.05 - (image - 0.5).abs()).repeat(1, 2, 1, 1) * 20

    model, image = Peak(), torch.full((1, 1, 4, 4), 0.44, dtype=torch.float64)
    attack = build("volume_bias(linf(0.3), steps=3, step_size=0.1)", "attack")
    result = attack(model, image, TARGET[:1, :, :4, :4], [1])
    assert model.decide(model(result.image)).sum() == 32


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("volume_bias(aim='bigger')", "expected an aim of volume_bias, got 'bigger'; there is: larger"),
        ("volume_bias(steps=0)", "steps"),
    ],
)
def test_options_out_of_range_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        build(text, "attack")


def test_an_organ_that_is_not_there_and_a_phase_that_is_not_known_are_refused() -> None:
    with pytest.raises(InputError, match="expected volume_bias to name an organ of heart, got 'la'"):
        build("volume_bias(organ='la')", "attack")(Threshold(), IMAGE, TARGET, [1, 2])
    with pytest.raises(InputError, match=r"expected cases at end diastole or end systole .* got 0 of no phase"):
        volumes("volume_bias(linf(0.1), 'lv', 'less ejected')", "", "")
    with pytest.raises(InputError, match="to be bound to its cases"):
        volumes("volume_bias(linf(0.1), 'lv', 'less ejected')")
