"""Bad input of a program is one sentence: expected, got, do. It is the same for attack, score and certify."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tensors import bright_model, squares, threshold
from torch import nn

import medseg_attack as ma
from medseg_attack.errors import InputError
from medseg_attack.library.arguments import checked

Call = Callable[..., Any]
# as users call them: the check of every annotation is for tests alone
attack, score, certify, wrap = map(inspect.unwrap, (ma.attack, ma.score, ma.certify, ma.wrap))
CALLS: dict[str, Call] = {"attack": attack, "score": score, "certify": certify}
EXCLUSIVE = ma.wrap(nn.Conv2d(1, 2, 1).eval(), classes=["background", "lesion"], exclusive=True)


def training() -> Any:
    model = bright_model()
    model.net.train()
    return model


IMAGES, MASKS = squares()
BAD = {
    "a network that is not wrapped": (
        threshold(),
        IMAGES,
        MASKS,
        r"expected a wrapped model, got a Conv2d; write ma\.wrap",
    ),
    "a layer in train mode": (
        training(),
        IMAGES,
        MASKS,
        "expected model in eval mode, got a Conv2d in train mode; call",
    ),
    "images in a list": (bright_model(), [1, 2], MASKS, "expected images as a tensor .*, got a list; add"),
    "images without channels": (bright_model(), IMAGES[:, 0], MASKS, r"columns\), got the shape \(3, 16, 16\); add"),
    "no images": (bright_model(), IMAGES[:0], MASKS[:0], r"got the shape \(0, 1, 16, 16\)"),
    "bytes": (bright_model(), (255 * IMAGES).byte(), MASKS, "expected images in float32 from 0 to 1, got uint8; write"),
    "doubles": (bright_model(), IMAGES.double(), MASKS, "got float64; write images.float"),
    "grey levels": (
        bright_model(),
        255 * IMAGES,
        MASKS,
        r"expected images in \[0, 1\], got values from 114.75 to 140.25",
    ),
    "NaN": (bright_model(), IMAGES * torch.nan, MASKS, "got values from nan to nan"),
    "masks as numbers": (
        bright_model(),
        IMAGES,
        MASKS[:, 0].long(),
        r"expected masks \(3, 1, 16, 16\), one channel for",
    ),
    "masks of other classes": (
        bright_model(),
        IMAGES,
        MASKS.repeat(1, 2, 1, 1),
        r"got the shape \(3, 2, 16, 16\); stack",
    ),
    "masks of other images": (bright_model(), IMAGES[:2], MASKS, r"expected masks \(2, 1, 16, 16\)"),
    "masks in floats": (bright_model(), IMAGES, MASKS.float(), "expected masks of True and False, got float32; write"),
    "no background": (EXCLUSIVE, IMAGES, MASKS.repeat(1, 2, 1, 1), "expected each pixel in one of background, lesion"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused_in_a_sentence(what: str, call: str) -> None:
    model, images, masks, sentence = BAD[what]
    with pytest.raises(InputError, match=sentence) as error:
        CALLS[call](model, images, masks)
    assert "\n" not in str(error.value)
    assert str(error.value).count("; ") >= 1


@pytest.mark.parametrize("call", CALLS)
def test_cases_are_those_of_the_images(call: str) -> None:
    cases = ma.attack(bright_model(), IMAGES, MASKS, "clean").batch.cases
    with pytest.raises(InputError, match="expected a case for each of 3 images, got 2"):
        CALLS[call](bright_model(), IMAGES, MASKS, cases=cases[:2])
    with pytest.raises(InputError, match="expected the images of the cases, got others"):
        CALLS[call](bright_model(), IMAGES, MASKS, cases=cases[::-1])


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        ("pdg", {}, "unknown attack: expected one that is registered, got 'pdg'; did you mean pgd"),
        ("pgd(steps=0)", {}, "expected steps >= 1, got 0"),
        ("uap", {}, "expected an attack that needs these images alone, got uap.*; run it with 'medattack attack'"),
        (3, {}, "expected an attack, got a int; write a spec"),
        ("fgsm", {"eps": "4HUU"}, "expected eps as 0.01"),
        ("fgsm", {"eps": -0.1}, "expected eps >= 0"),
        ("fgsm", {"eps": "5HU"}, "expected intensities in HU for --eps 5HU, got no unit"),
        ("bias_field", {"eps": "1sigma"}, "in its own unit"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(spec: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        attack(bright_model(), IMAGES, MASKS, spec, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"net": "net"}, "expected a torch.nn.Module to wrap, got a str"),
        ({"net": bright_model()}, "got a SegModel; use it as it is"),
        (
            {"net": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))},
            "expected net in eval mode, got a Conv2d in train",
        ),
        ({"classes": ["a", "a"]}, "expected a name of its own for each class"),
        ({"classes": []}, "expected a name of its own for each class"),
        ({"exclusive": True}, "expected 'background' as the first of two or more exclusive classes, got lesion"),
        ({"dims": 4}, "expected dims=2 or dims=3, got 4 in the network"),
        ({"head": "tanh"}, "unknown head"),
        ({"axes": "xx"}, "expected axes of each of y, x once"),
        ({"size": (32,)}, "expected size of 2 sides"),
        ({"window": (32,)}, "window"),
    ],
)
def test_a_network_that_cannot_be_wrapped_is_refused(change: dict[str, Any], sentence: str) -> None:
    fields: dict[str, Any] = {"net": threshold(), "classes": ["lesion"], "exclusive": False} | change
    with pytest.raises(InputError, match=sentence):
        wrap(**fields)


def test_radii_and_metrics_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="expected a finite radius of 0 or more, got -1"):
        ma.certify(bright_model(), IMAGES, MASKS, radii=[-1.0])
    with pytest.raises(InputError, match="unknown certificate"):
        ma.certify(bright_model(), IMAGES, MASKS, "expected_dise")
    with pytest.raises(InputError, match="unknown metric"):
        ma.score(bright_model(), IMAGES, MASKS, metrics=["hd96_mm"])
    with pytest.raises(InputError, match="expected one of attack"):
        ma.names("attacks")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"detector": "entropi"}, "unknown detector"),
        ({"training": None}, "expected images to learn from for the detector entropy, got none; give training="),
        ({"training": IMAGES}, "expected images and masks as training, got a Tensor; write open_data"),
        ({"calibration": (IMAGES, MASKS)}, "expected 19 calibration patients or more for 0.05 false alarms, got 3"),
        ({"false_alarms": 1.5}, "expected a rate of false alarms between 0 and 1"),
        ({"images": IMAGES[:, 0]}, r"got the shape \(3, 16, 16\)"),
    ],
)
def test_what_a_detector_cannot_learn_from_is_refused(change: dict[str, Any], sentence: str) -> None:
    many = IMAGES.repeat(7, 1, 1, 1), MASKS.repeat(7, 1, 1, 1)
    fields: dict[str, Any] = {"images": IMAGES, "training": many, "calibration": many} | change
    with pytest.raises(InputError, match=sentence):
        inspect.unwrap(ma.detect)(bright_model(), **fields)


WRONG: tuple[Any, ...] = (5, -1.5, "no such", None, [], [None], {}, object(), b"x", torch.zeros(2), ("a", 1))
GOOD: dict[str, dict[str, Any]] = {
    "wrap": {"net": threshold(), "classes": ["lesion"], "exclusive": False},
    "load": {"model": "unet"},
    "build": {"spec": "pgd"},
    "names": {"kind": "attack"},
    "attack": {"model": bright_model(), "images": IMAGES, "masks": MASKS, "attack": "fgsm"},
    "score": {"model": bright_model(), "images": IMAGES, "masks": MASKS},
    "certify": {"model": bright_model(), "images": IMAGES, "masks": MASKS, "certificate": "expected_dice(draws=50)"},
    "detect": {"model": bright_model(), "images": IMAGES, "training": (IMAGES, MASKS), "calibration": (IMAGES, MASKS)},
    "draw": {"result": None},
    "open_data": {"path": "nowhere"},
    "read_runs": {},
    "summary": {"rows": None},
}


def test_every_function_of_the_library_is_among_these() -> None:
    assert set(GOOD) == {name for name in ma.__all__ if inspect.isfunction(getattr(ma, name))}


@pytest.mark.parametrize("name", GOOD)
def test_an_argument_of_a_wrong_type_is_refused_in_a_sentence(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function = checked(inspect.unwrap(getattr(ma, name)))
    result = ma.attack(bright_model(), IMAGES, MASKS, "clean")
    good = GOOD[name] | ({"result": result} if name == "draw" else {"rows": result.rows} if name == "summary" else {})
    outcomes = []
    for parameter in inspect.signature(function).parameters.values():
        for value in WRONG:
            positional = parameter.kind is parameter.VAR_POSITIONAL
            words = good if positional else good | {parameter.name: value}
            try:
                function(*([value] if positional else []), **words)
                outcomes.append(True)
            except InputError as error:
                outcomes.append(False)
                sentence = str(error)
                assert "\n" not in sentence
                assert "expected" in sentence, sentence
    assert not all(outcomes)
