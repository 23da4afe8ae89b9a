"""What a model's answers depend on is part of its hash; what they do not depend on is not."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.command import medattack
from helpers.scans import write_decathlon
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models import checkpoints
from medseg_attack.models.model_ref import files_of, resolve
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.trust import use_trust
from medseg_attack.registry import build
from medseg_attack.types import Task

TASK = Task("organs", ("background", "organ"), exclusive=True)
SOURCE = """
import os
from torch import nn
import blocks

class Net(nn.Module):
    def forward(self, x):
        z = blocks.scaled(x[:, :1] - float(open("level.txt").read())) * float(os.environ.get("GAIN", 1))
        return nn.functional.pad(z, (0, 0, 0, 0, 1, 0))

def build(): return Net()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network of three files and a variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("net", "blocks"):  # of a test before
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("net.py").write_text(SOURCE)
    Path("blocks.py").write_text("def scaled(x): return 20 * x\n")
    Path("level.txt").write_text("0.5")
    return tmp_path


def hash_of(spec: str) -> str:
    return resolve(spec, TASK).weights_hash


CHANGES: dict[str, Callable[[], Any]] = {
    "a module": lambda: Path("blocks.py").write_text("def scaled(x): return 21 * x\n"),
    "a file": lambda: Path("level.txt").write_text("0.4"),
    "the code": lambda: Path("net.py").write_text(SOURCE.replace("(0, 0, 0, 0, 1, 0)", "(0, 0, 0, 0, 0, 1)")),
    "a variable": lambda: os.environ.update(GAIN="2"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("net", ["net.py:build", "net:build"])
def test_what_code_depends_on(place: Path, net: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN", "1")
    before = hash_of(f"own({net!r})")
    Path("unrelated.py").write_text("")
    assert hash_of(f"own({net!r})") == before
    CHANGES[change]()
    assert hash_of(f"own({net!r})") != before


def test_a_checkpoint_of_a_factory_s_network_depends_on_its_code(place: Path) -> None:
    Path("net.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(1, 2, 1)\n")
    model: Any = build("own('net.py:build')", "model")(TASK)
    checkpoints.save(Path("model"), model, {"label": "net", "spec": "own('net.py:build')"})
    use_trust(None, True)
    before = hash_of("model")
    Path("net.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(1, 2, 1)  # padded\n")
    assert hash_of("model") != before
    use_trust(None, False)


def external(level: float, folder: str = ".", where: str = "level.bin") -> None:
    """net.onnx, which takes its level from another file."""
    tensor = numpy_helper.from_array(np.full((1, 1, 1, 1), level, np.float32), "level")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 1, "h", "w"]) for n in "xy")
    nodes = [helper.make_node("Sub", ["x", "level"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], [tensor]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save_model(model, f"{folder}/net.onnx", save_as_external_data=True, location="level.bin", size_threshold=0)
    if where != "level.bin":
        saved = onnx.load(f"{folder}/net.onnx", load_external_data=False)
        for entry in saved.graph.initializer[0].external_data:
            entry.value = where if entry.key == "location" else entry.value
        Path(folder, "net.onnx").write_bytes(saved.SerializeToString())


def test_external_weights_of_onnx(place: Path) -> None:
    external(0.5)
    before, file = hash_of("own('net.onnx')"), Path("net.onnx").read_bytes()
    Path("level.bin").write_bytes(np.float32(0.25).tobytes())
    assert Path("net.onnx").read_bytes() == file
    assert hash_of("own('net.onnx')") != before
    assert [path.name for path in files_of("own('net.onnx')")] == ["net.onnx", "level.bin"]


@pytest.mark.parametrize("where", ["../outside.bin", "absent.bin", "PLACE/outside.bin", "link.bin"])
def test_external_weights_lie_beside_the_network(place: Path, where: str) -> None:
    Path("inner").mkdir()
    Path("outside.bin").write_bytes(np.float32(0.25).tobytes())
    Path("inner/link.bin").symlink_to(place / "outside.bin")
    external(0.5, "inner", where.replace("PLACE", str(place)))
    with pytest.raises(InputError, match=r"expected the weights of inner/net.onnx in a file beside it, got '"):
        hash_of("own('inner/net.onnx')")


# what a network does to what it is given


class InPlace(nn.Module):
    """Normalises its input in place, as Normalize(inplace=True) does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(0.1).div_(0.9)
        z = self.scale * (x - 0.4)
        return torch.cat((-z, z), 1)


@pytest.mark.parametrize("window", [(), (8, 8)])
def test_a_network_that_changes_its_input_gets_a_copy(window: tuple[int, ...]) -> None:
    from medseg_attack.models.networks.monai import with_windows

    net = InPlace()
    model = SegModel(with_windows(net, 2, window=window, overlap=0.5, importance="gaussian", mirror=()), TASK).eval()
    image = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    (gradient,) = torch.autograd.grad(model(image.requires_grad_()).select(1, 1).sum(), image)
    assert torch.equal(image.detach(), before)
    torch.testing.assert_close(model(before)[:, 1], 2 * 20 * ((before[:, 0] - 0.1) / 0.9 - 0.4))
    torch.testing.assert_close(gradient, torch.full_like(before, 2 * 20 / 0.9))


def test_what_a_network_prints_is_no_result(place: Path) -> None:
    write_decathlon(Path("raw"))
    medattack("prepare", "raw", "--format", "decathlon", "--out", "data")
    Path("net.py").write_text(
        "print('loaded')\nfrom torch import nn\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        print('shape', x.shape)\n        return super().forward(x)\n"
        "def build():\n    print('built')\n    return Net(1, 4, 1)\n"
    )
    common = "--data", "data", "--model", "own('net.py:build')", "--json"
    for words in (
        ("attack", *common, "--limit", "1", "--eps", "0.1", "--out", "runs"),
        ("evaluate", *common, "--limit", "1", "--out", "scores"),
        ("doctor", *common),
    ):
        result = medattack(*words, code=int(words[0] == "doctor"))  # random weights find nothing, which is flagged
        json.loads(result.stdout)
        for word in ("loaded", "built", "shape"):
            assert word in result.stderr
