"""Weights as trainers keep them, under keys and behind prefixes, and what a refusal says of those that do not fit."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medseg_attack.errors import InputError, close_matches
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.types import Task

TASK = Task("organs", ("background", "organ"), exclusive=True)
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, affine=False)

    def forward(self, x):
        z = self.conv(x)
        return torch.cat((-z, z), 1)

def build(): return Net()
def half(): return Net().half()
def brain(): return Net().bfloat16()
def one(): return nn.Conv2d(1, 1, 1)
def three(): return nn.Conv2d(1, 3, 1)

class Cast(Net):
    def forward(self, x):
        return super().forward(x.half())

def cast(): return Cast()
def deep(): return nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(20)))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)


def plain() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.full((1, 1, 1, 1), 20.0),
        "conv.bias": torch.full((1,), -10.0),
        "norm.running_mean": torch.zeros(1),
        "norm.running_var": torch.ones(1),
        "norm.num_batches_tracked": torch.tensor(0),
    }


def prefixed(text: str) -> dict[str, Tensor]:
    return {text + name: value for name, value in plain().items()}


def half() -> dict[str, Tensor]:
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in plain().items()}


FILES: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "parallel": lambda: prefixed("module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "both": lambda: prefixed("module._orig_mod."),
    "compiled inside": lambda: {name.replace("conv.", "conv._orig_mod."): value for name, value in plain().items()},
    "lightning": lambda: {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{"state": {}}]},
    "options": lambda: {"state_dict": prefixed("net."), "hyper_parameters": argparse.Namespace(lr=1e-3)},
    "numpy": lambda: {"model": plain(), "optimizer": {}, "best": np.float64(0.9)},
    "model_state": lambda: {"model_state": plain()},
    "nested": lambda: {"checkpoint": {"weights": prefixed("student.")}},
    "moments": lambda: {"state_dict": plain(), "moments": {"conv.weight": torch.zeros(1)}},
    "half precision": half,
}


def answer(spec: str, task: Task = TASK) -> Tensor:
    model: SegModel = build(spec, "model")(task).eval()
    with torch.no_grad():
        return model(torch.full((1, 1, 2, 2), 0.75))


@pytest.mark.parametrize("kind", FILES)
def test_weights_are_read_wherever_they_fit(kind: str) -> None:
    torch.save(FILES[kind](), "net.pth")
    torch.testing.assert_close(answer("own('net.py:build', weights='net.pth')")[0, 1], torch.full((2, 2), 10.0))


def test_prefixes_in_safetensors() -> None:
    save_file(prefixed("model."), "net.safetensors")
    torch.testing.assert_close(answer("own('net.py:build', weights='net.safetensors')")[0, 1], torch.full((2, 2), 10.0))


def test_of_two_sets_that_fit_none_is_taken() -> None:
    torch.save({"ema": plain(), "model": {name: value * 0 for name, value in plain().items()}}, "net.pth")
    with pytest.raises(InputError, match=r"expected one set of weights .*, got 2: ema, model; save the one"):
        answer("own('net.py:build', weights='net.pth')")


def test_what_does_not_fit_is_listed_on_both_sides() -> None:
    torch.save({f"layer{n}.weight": torch.ones(1) for n in range(30)}, "net.pth")
    with pytest.raises(InputError) as refusal:
        answer("own('net.py:deep', weights='net.pth')")
    text = str(refusal.value)
    assert (
        "missing: 0.weight, 0.bias ... 19.weight, 19.bias (40); unexpected: layer0.weight, layer1.weight ... " in text
    )
    assert "layer28.weight, layer29.weight (30)" in text
    torch.save({**plain(), "conv.weight": torch.ones(2, 1, 1, 1)}, "net.pth")
    with pytest.raises(InputError, match=r"other shapes: conv.weight \(2, 1, 1, 1\) instead of \(1, 1, 1, 1\); name"):
        answer("own('net.py:build', weights='net.pth')")


@pytest.mark.parametrize("factory", ["half", "brain"])
def test_a_network_in_half_precision_is_run_in_single_precision(factory: str) -> None:
    model: SegModel = build(f"own('net.py:{factory}')", "model")(TASK).eval()
    image = torch.rand(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(image).sum(), image)
    assert gradient.dtype == torch.float32


def test_a_network_that_casts_its_input_is_told_to_be_in_single_precision() -> None:
    with pytest.raises(InputError, match=r"give the network in single precision: net.float\(\)"):
        answer("own('net.py:cast')")


def test_another_number_of_channels_has_another_remedy() -> None:
    with pytest.raises(InputError, match=r"got 1 channels; write head='sigmoid' if .*, or head='probabilities'"):
        answer("own('net.py:one')")
    assert answer("own('net.py:one', head='sigmoid')").shape == (1, 2, 2, 2)
    with pytest.raises(InputError, match="got 3 channels; if its first channel is the background, prepare the data so"):
        answer("own('net.py:three')", Task("organs", ("liver", "spleen")))
    with pytest.raises(InputError, match="got 3 channels; give the data that it was trained for"):
        answer("own('net.py:three')")


def test_swapped_letters_are_one_slip() -> None:
    assert close_matches("pdg", ["pdgd", "pgd", "fgsm"]) == ["pgd"]
    assert close_matches("fgms", ["fgsm", "ifgsm", "fgm"]) == ["fgsm"]
