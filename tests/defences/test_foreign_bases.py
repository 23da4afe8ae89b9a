"""Models around networks from elsewhere: a results folder of nnU-Net, and one's own network of slices and of scans."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.nnunet_folder import TASK, write_folder

from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.model_ref import resolve
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import build
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, Setting, Storage, Window

NETS = """
import torch


def slices(task):
    return network(torch.nn.Conv2d, task)


def scans(task):
    return network(torch.nn.Conv3d, task)


def network(conv, task):
    torch.manual_seed(5)
    return torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.Tanh(), conv(4, len(task.classes), 3, padding=1))
"""
AROUND = (
    "guarded({}, [bit_depth(bits=5), median])",
    "guarded({}, [jpeg, resize_pad(largest=1.3)])",
    "ensemble({}, guarded({}, [gaussian_blur]))",
    "voted({}, sigma=0.02, draws=2)",
    "tta({}, mirror=(0, 1))",
)


def cases(dims: int) -> tuple[Case, ...]:
    """Two scans of different windows and spacings, or a slice of each, as files hold them."""
    result = []
    for number, (low, high) in enumerate([(-20.0, 300.0), (-100.0, 400.0)]):
        stored = torch.from_numpy(np.random.default_rng(number).integers(1, 200, (1, 6, 9, 11)).astype(np.int16))
        target = torch.zeros(3, 6, 9, 11, dtype=torch.bool)
        target[1, 2:5, 3:6, 4:8] = True
        target[0] = ~target[1]
        image = (stored.float() - low) / (high - low)
        spacing = (2.0, 1.0, 1.0 + number)
        if dims == 2:
            image, target, stored, spacing = image[:, 3], target[:, 3], stored[:, 3], spacing[1:]
        name = f"scan{number}"
        storage = Storage(stored)
        result.append(Case(name, name, name, image, target, spacing, Window(low, high), None, storage, TASK.classes))
    return tuple(result)


@pytest.fixture(params=["nnunet", "slices", "scans"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The spec of a network that brings its weights."""
    if request.param == "nnunet":
        return f"nnunet({str(write_folder(tmp_path))!r}, mirror=False)"  # eight passes as one: tests of nnU-Net mirror
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    return f"own('{tmp_path / 'nets.py'}:{request.param}', dims={2 if request.param == 'slices' else 3})"


@pytest.mark.parametrize("around", AROUND)
def test_a_network_from_elsewhere_is_defended_and_attacked_as_any_other(base: str, around: str) -> None:
    model_ref = resolve(around.replace("{}", base), TASK)
    model = model_ref.load(TASK, "cpu")
    scans = cases(model_ref.dims)
    assert model_ref.base == str(build_spec(base))
    attacks = [
        build(text, "attack") for text in ("averaged(bpda(pgd(linf(8/255), steps=2)), passes=2)", "square(queries=3)")
    ]
    with frozen(model):
        together = attack_chunk(model, [Batch.of(scans)], attacks)
        alone = [attack_chunk(model, [Batch.of([scan])], attacks) for scan in scans]
    for n, result in enumerate(together):
        rows = [row for part in alone for row in part[n].rows]
        assert [row.case for row in result.rows] == [row.case for row in rows]
        for one, other in zip(result.rows, rows, strict=True):
            assert one.hit_clean == pytest.approx(other.hit_clean, abs=2)
            assert one.hit_adv == pytest.approx(other.hit_adv, abs=12)  # a sign of a tiny gradient turns with the batch


def build_spec(text: str) -> str:
    from medseg_attack.registry import spec

    return spec(build(text, "model"))


def test_what_is_around_nnunet_tells_it_whose_image_it_sees(tmp_path: Path) -> None:
    """Its windows and spacings are those of the case, also behind layers and within an ensemble."""
    base = f"nnunet({str(write_folder(tmp_path))!r})"
    plain: SegModel = build(base, "model")(TASK).eval()
    one = build(f"ensemble(guarded({base}))", "model")(TASK).eval()
    scans = cases(3)
    image = torch.stack([scan.image for scan in scans])
    setting = Setting(TASK, scans)
    with torch.no_grad():
        assert torch.equal(bind(one, setting)(image), bind(plain, setting)(image))
        other = Setting(TASK, scans[::-1])
        assert not torch.equal(bind(one, other)(image), bind(plain, setting)(image))
