"""The memory that an attack on a volume takes, counted in float32 volumes of tensors that are alive at once."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medseg_attack import registry
from medseg_attack.evaluation import outcomes
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics import overlap, visibility
from medseg_attack.models.segmodel import Normalise, SegModel, frozen
from medseg_attack.models.sliding_window import SlidingWindow
from medseg_attack.numerics import noise, samples, slabs
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.types import Attack, Batch, Case, Storage, Task, Window

TASK = Task("volume", ("organ",))
GRID, WINDOW = (48, 24, 24), (4, 12, 12)
VOLUME = 4 * 48 * 24 * 24  # bytes in float32


class Alive(TorchDispatchMode):
    """The bytes of all tensors that are alive, and the most that were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes and size > VOLUME / 100:
            self.sizes[key] = size
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


@pytest.fixture(autouse=True)
def in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small volume of these tests is computed in slabs of a plane, as a large one would be."""
    for module in (slabs, noise, overlap, samples, visibility):
        monkeypatch.setattr(module, "SLAB", GRID[1] * GRID[2])
    # its tables of a fixed size are nothing beside a real volume
    monkeypatch.setattr(outcomes, "noise_of", lambda image: torch.zeros(len(image)))


def scan(dtype: torch.dtype = torch.int16, padding: tuple[int, int] | None = None) -> Case:
    draw = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 250, (1, *GRID), generator=draw).to(dtype)
    image = ((stored.double() * 4.0 - 100.0) / 800).clamp(0, 1).float()
    target = nn.functional.avg_pool3d(image, 3, 1, 1) > 0.5  # what the network says of it
    storage = Storage(stored, 4.0, -100.0, padding=padding)
    return Case("v", "v", "g", image, target, (2.0, 1.0, 1.0), Window(0, 800), storage=storage)


def network(normalise: nn.Module | None = None, window: tuple[int, int, int] = WINDOW) -> SegModel:
    """A threshold of the mean of 27 voxels, which takes next to no memory."""
    net = nn.Sequential(nn.AvgPool3d(3, 1, 1), nn.Conv3d(1, 1, 1))
    with torch.no_grad():
        net[1].weight.fill_(40.0)
        net[1].bias.fill_(-20.0)
    return SegModel(SlidingWindow(net, window, overlap=0.25), TASK, dims=3, normalise=normalise)


def attack(text: str) -> Attack:
    return registry.with_eps(registry.build(text, "attack"), 4 / 255)


MOST = {  # before windows were rounded one by one: 5.1, 6.2, 6.2, 6.2, 8.0, 13.3
    "fgsm": 4.75,
    "bim(steps=2)": 5.5,
    "pgd(steps=2)": 5.5,
    "segpgd(steps=2)": 5.5,
    "mi_fgsm(steps=2)": 6.5,
    "apgd(steps=2)": 8.75,
}


@pytest.mark.parametrize("text", MOST)
def test_an_attack_on_a_volume_keeps_nothing_that_it_can_compute_window_by_window(text: str) -> None:
    with frozen(network()) as model, Alive() as alive:
        case = scan()
        for tensor in (case.image, case.target, case.storage.stored):  # type: ignore[union-attr]
            alive.add(tensor)
        attack_chunk(model, [Batch.of([case])], [attack(text)])
    assert alive.most / VOLUME < MOST[text]


CASES = {
    "16 bits": (scan(), network()),
    "8 bits": (scan(torch.uint8), network()),
    "floats": (scan(torch.float32), network()),
    "padding": (scan(padding=(0, 60)), network()),
    "a layer before the windows": (scan(), network(Normalise((0.0,), (1.0,)))),
    "windows larger than the scan": (scan(), network(window=(8, 16, 32))),
}


@pytest.mark.parametrize(
    ("kind", "text"),
    [*((kind, "pgd(steps=2)") for kind in CASES), ("16 bits", "apgd(steps=2)"), ("16 bits", "pgd(l2(1), steps=1)")],
)
def test_windows_that_are_rounded_one_by_one_change_no_bit(
    kind: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, model = CASES[kind]
    shown: list[bool] = []
    rounding = StoredValues.rounding
    monkeypatch.setattr(StoredValues, "rounding", lambda *args: shown.append(True) or rounding(*args))
    one = attack(text) if "l2" not in text else registry.build(text, "attack")
    with frozen(model):
        (in_windows,) = attack_chunk(model, [Batch.of([case])], [one], keep_images=True)
        assert bool(shown) == ("windows" not in kind)
        monkeypatch.setattr(SegModel, "sees_windows_alone", lambda *_: False)
        (whole,) = attack_chunk(model, [Batch.of([case])], [one], keep_images=True)
    assert torch.equal(in_windows.images[0], whole.images[0])
    assert in_windows.rows == whole.rows
    assert in_windows.rows[0].size > 0
