"""Model files that are cut, overwritten or filled with other values: each is refused in a sentence, or is still whole.

`MEDATTACK_DAMAGED=1000` tries that many of each kind.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers.nnunet_folder import TASK as NNUNET
from helpers.nnunet_folder import write_folder
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models import checkpoints
from medseg_attack.models.model_ref import resolve
from medseg_attack.registry import build
from medseg_attack.types import Task

TASK = Task("organs", ("background", "liver"), exclusive=True)
TRIES = int(os.environ.get("MEDATTACK_DAMAGED", "14"))
VALUES = (
    None,
    True,
    -1,
    0,
    1e300,
    10**12,
    10**30,
    "",
    "text",
    "../x",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    [None] * 3,
    "\ud800",
)


def checkpoint() -> str:
    model: Any = build("unet_small", "model")(TASK)
    checkpoints.save(Path("model"), model, {"label": "net", "spec": "unet_small"})
    return "model"


def torchscript() -> str:
    torch.jit.script(nn.Conv2d(1, 2, 3, padding=1)).save("net.ts")
    return "own('net.ts')"


def exported() -> str:
    torch.export.save(torch.export.export(nn.Conv2d(1, 2, 3, padding=1), (torch.rand(1, 1, 8, 8),)), "net.pt2")
    return "own('net.pt2', trust=True)"


def onnx_file() -> str:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2, "h", "w"])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 1, 1, 1], [1.0, -1.0])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "net", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "net.onnx")
    return "own('net.onnx')"


def weights(name: str) -> str:
    Path("net.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(1, 2, 3, padding=1)\n")
    state = nn.Conv2d(1, 2, 3, padding=1).state_dict()
    if name.endswith("safetensors"):
        save_file(state, name)
    else:
        torch.save({"epoch": 3, "state_dict": state}, name)
    return f"own('net.py:build', weights={name!r})"


def smp_folder() -> str:
    import segmentation_models_pytorch as smp

    options = {"encoder_depth": 3, "decoder_channels": (4, 4, 4), "classes": 2, "in_channels": 1}
    smp.Unet("mobilenet_v2", encoder_weights=None, **options).save_pretrained("hub")
    return "own('hub', stride=8)"


def bundle() -> str:
    from monai.networks.nets.unet import UNet

    for name in ("configs", "models"):
        Path("bundle", name).mkdir(parents=True)
    definition = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8]}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8], "overlap": 0.5, "mode": "gaussian"}
    content = {"network_def": definition | {"strides": [2]}, "inferer": inferer}
    Path("bundle/configs/inference.json").write_text(json.dumps(content))
    save_file(UNet(2, 1, 2, (4, 8), (2,)).state_dict(), "bundle/models/model.safetensors")
    return "own('bundle')"


def nnunet() -> str:
    return f"nnunet({str(write_folder(Path('results')))!r})"


KINDS: dict[str, Callable[[], str]] = {
    "checkpoint": checkpoint,
    "torchscript": torchscript,
    "torch.export": exported,
    "onnx": onnx_file,
    "pth": lambda: weights("net.pth"),
    "safetensors": lambda: weights("net.safetensors"),
    "smp": smp_folder,
    "bundle": bundle,
    "nnunet": nnunet,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    return tmp_path


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content of a file, damaged in one of the ways in which files are damaged."""
    at = draw.randrange(len(content) or 1)
    match draw.choice(["cut", "cut", "zeros", "bytes", "flips", "empty", "noise", "grown"]):
        case "cut":
            return content[:at]
        case "zeros":
            return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]
        case "bytes":
            return content[:at] + draw.randbytes(64) + content[at + 64 :]
        case "flips":
            flipped = bytearray(content)
            for _ in range(8):
                flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case "empty":
            return b""
        case "noise":
            return draw.randbytes(300)
    return content + draw.randbytes(100)


def changed(content: Any, draw: random.Random) -> Any:
    """JSON with one value, at any depth, replaced or left out."""
    places = list(paths(content))
    path = draw.choice(places)
    holder = content
    for step in path[:-1]:
        holder = holder[step]
    if isinstance(holder, dict) and draw.random() < 0.3:
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw.choice(VALUES)
    return content


def paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values in JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_is_refused_in_a_sentence(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = KINDS[kind]()
    task = NNUNET if kind == "nnunet" else TASK
    answer(spec, task)
    draw = random.Random(kind)
    files = sorted(path for path in Path().rglob("*") if path.is_file() and path.suffix != ".py")
    for n in range(TRIES):
        shutil.copytree(place / "whole", place / str(n))
        monkeypatch.chdir(place / str(n))
        file = draw.choice(files)
        content = file.read_bytes()
        if file.suffix == ".json" and draw.random() < 0.8:
            file.write_text(json.dumps(changed(json.loads(content), draw)))
        else:
            file.write_bytes(damaged(content, draw))
        sentence = answer(spec, task, f"{kind} {n}: {file}")
        assert len(sentence) < 900
        monkeypatch.chdir(place)
        shutil.rmtree(place / str(n))


def answer(spec: str, task: Task, what: str = "") -> str:
    """The sentence with which a model is refused; "" of one that is built."""
    try:
        model = resolve(spec, task).load(task, "cpu")
        if "nnunet" not in spec:
            with torch.no_grad():
                model(torch.rand(1, 1, 8, 8))
    except InputError as error:
        return str(error)
    except Exception as error:
        if not what:
            raise
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return ""
