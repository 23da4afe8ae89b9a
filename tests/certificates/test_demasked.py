"""Demasked smoothing against every patch there is, on small images; and the strips that it stands on."""

import itertools

import pytest
import torch

from medseg_attack.certificates import demasked
from medseg_attack.certificates.demasked import Demasked, filled, strips
from medseg_attack.certificates.soundness import worst_columns
from medseg_attack.models.linear import oracle
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, Case, Task, Window

COLUMNS, PATCH = 9, 2


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("patch", [1, 2, 5, 13])
@pytest.mark.parametrize("columns", [14, 32, 33])
def test_every_patch_lies_wholly_under_a_strip(columns: int, patch: int, stride: int) -> None:
    for first in range(columns - patch + 1):
        covers = [a <= first and first + patch - 1 <= b for a, b in strips(columns, patch, stride)]
        assert any(covers)
    assert all(0 <= a <= b < columns for a, b in strips(columns, patch, stride))


def test_the_strips_of_the_reference() -> None:
    assert len(strips(128, 13, 16)) == 8
    assert strips(128, 0, 16) == []


def test_a_ramp_is_filled_as_it_was_and_the_rest_stays() -> None:
    ramp = torch.linspace(0, 1, 10).expand(2, 1, 4, 10)
    torch.testing.assert_close(filled(ramp, 3, 6), ramp)
    assert torch.equal(filled(ramp, 0, 2), torch.cat([ramp[..., 3:4].expand(-1, -1, -1, 3), ramp[..., 3:]], -1))
    assert torch.equal(filled(ramp, 7, 9), torch.cat([ramp[..., :7], ramp[..., 6:7].expand(-1, -1, -1, 3)], -1))


def test_what_lies_under_a_strip_does_not_matter() -> None:
    image = torch.rand(1, 1, 3, 6)
    for first, last in itertools.combinations_with_replacement(range(6), 2):  # up to all columns
        other = image.clone()
        other[..., first : last + 1] = torch.rand(1, 1, 3, last + 1 - first)
        assert torch.equal(filled(image, first, last), filled(other, first, last))


def turned(model: SegModel, certificate: Demasked, clean: Batch, images: torch.Tensor) -> int:
    """Answers that some of the images turn and leave verified, of those that are verified on the clean one."""
    observed = certificate.observe(model, clean, [PATCH], 0, 512)
    patched = Batch(images, clean.target.expand(len(images), -1, -1, -1), clean.cases * len(images))
    elsewhere = certificate.observe(model, patched, [PATCH], 0, 512)
    same = elsewhere.answer == observed.answer
    return int((observed.verified[PATCH] & elsewhere.verified[PATCH] & ~same).sum())


def turned_by_every_patch(stride: int) -> tuple[int, int]:
    """Turned answers of small random networks under all patches of two columns of three grey levels; and of wider."""
    generator = torch.Generator().manual_seed(0)
    n_turned = n_beyond = 0
    for _ in range(8):
        conv = torch.nn.Conv2d(1, 2, (1, 5), padding=(0, 2))
        conv.weight.data = torch.randn(conv.weight.shape, generator=generator)
        conv.bias.data = -conv.weight.data.sum((1, 2, 3)) / 2
        image = torch.rand(1, 1, 1, COLUMNS, generator=generator)
        case = Case("c", "v", "p", image[0], torch.zeros(2, 1, COLUMNS, dtype=torch.bool), (1.0, 1.0), Window(0, 1))
        with frozen(SegModel(conv, Task("t", ("a", "b")))) as model:
            for columns in (PATCH, 2 * PATCH + stride):
                images = []
                for first in range(COLUMNS - columns + 1):
                    for content in itertools.product((0.0, 0.5, 1.0), repeat=min(columns, 5)):
                        patched = image.clone()
                        patched[..., first : first + len(content)] = torch.tensor(content)
                        images.append(patched)
                n = turned(model, Demasked(stride), Batch.of([case]), torch.cat(images))
                if columns == PATCH:
                    n_turned += n
                else:
                    n_beyond += n
    return n_turned, n_beyond


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_patch_turns_a_verified_answer_and_leaves_it_verified(stride: int) -> None:
    within, beyond = turned_by_every_patch(stride)
    assert within == 0
    assert beyond > 0  # wider patches do: the search would have seen a bound that is false


def test_strips_that_are_too_narrow_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = lambda columns, patch, stride: [(a, max(a, b - 1)) for a, b in strips(columns, patch, stride)]  # noqa: E731
    monkeypatch.setattr(demasked, "strips", narrow)
    assert turned_by_every_patch(2)[0] > 0


@pytest.mark.parametrize("columns", [1, 4, 16])
def test_the_attack_turns_every_pixel_of_neighbouring_columns_and_changes_no_other(columns: int) -> None:
    """Of a model that looks at single pixels, whose answers can all be turned within [0, 1]."""
    image = torch.rand(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    target = torch.rand(2, 1, 5, 16, generator=torch.Generator().manual_seed(1)) < 0.4
    cases = [Case(f"{n}", "v", "p", image[n], target[n], (1.0, 1.0), Window(0, 1)) for n in range(2)]
    with frozen(oracle(Task("t", ("a",)))) as model:
        x = worst_columns(model, Batch.of(cases), columns)
        answer = model.decide(model(x))
    assert ((x >= 0) & (x <= 1)).all()
    for n in range(2):
        places = (x[n] != image[n]).flatten(0, 1).any(0).nonzero().flatten()
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + columns))
        assert torch.equal(answer[n][..., places], ~target[n][..., places])
