"""Files of others that would run something when they are read: each trap would make a folder, and none may."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.types import Task

TASK = Task("organs", ("background", "liver", "spleen"), exclusive=True)
UNET = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


class Trap:
    """What unpickling makes a folder of."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where traps would make a folder; beside it is the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "sprung"


def read(spec: str) -> SegModel:
    model: SegModel = build(spec, "model")(TASK)
    return model.eval()


def pickled(sprung: Path) -> bytes:
    stream = io.BytesIO()
    torch.save((Trap(sprung),), stream)
    return stream.getvalue()


def in_samples(name: str, content: bytes, sprung: Path) -> bytes:
    return pickled(sprung) if name.endswith("data/sample_inputs/model.pt") else content


def in_weights(name: str, content: bytes, sprung: Path) -> bytes:
    if name.endswith("data/weights/weight_0"):
        return pickled(sprung)
    if not name.endswith("weights_config.json"):
        return content
    described = json.loads(content)
    for weight in described["config"].values():
        weight["use_pickle"] = weight["path_name"] == "weight_0"
    return json.dumps(described).encode()


def in_shapes(name: str, content: bytes, sprung: Path) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    expression = json.dumps(f"__import__('os').mkdir({str(sprung)!r})")
    first = content.decode().split('"expr_str": ')[1]
    return content.replace(first[: first.index('"', 1) + 1].encode(), expression.encode(), 1)


@pytest.mark.parametrize("trap", [in_samples, in_weights, in_shapes])
@pytest.mark.filterwarnings("ignore")  # torch warns of what it then does
def test_a_torch_export_file_is_read_on_request_alone(sprung: Path, trap: Callable[[str, bytes, Path], bytes]) -> None:
    batch = {"input": {0: torch.export.Dim("b")}}
    program = torch.export.export(nn.Conv2d(1, 3, 3, padding=1), (torch.rand(2, 1, 8, 8),), dynamic_shapes=batch)
    torch.export.save(program, "net.pt2")
    with zipfile.ZipFile("net.pt2") as honest, zipfile.ZipFile("trap.pt2", "w") as trapped:
        for info in honest.infolist():
            trapped.writestr(info.filename, trap(info.filename, honest.read(info), sprung))
    with pytest.raises(InputError, match=r"expected trust=True beside trap.pt2, .* runs whatever it holds"):
        read("own('trap.pt2')")
    assert not sprung.exists()
    with contextlib.suppress(InputError):  # what is left in the place of the weights or shapes is no network
        read("own('trap.pt2', trust=True)")
    assert sprung.exists()  # so that the trap is one


def bundle(definition: Any, **others: Any) -> None:
    from monai.networks.nets.unet import UNet

    for name in ("configs", "models"):
        Path("bundle", name).mkdir(parents=True, exist_ok=True)
    Path("bundle/configs/inference.json").write_text(json.dumps({"network_def": definition} | others))
    save_file(UNet(2, 1, 3, (4, 8), (2,)).state_dict(), "bundle/models/model.safetensors")


@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "run_cmd", "cmd_list": ["mkdir", "SPRUNG"]},
        {"_target_": "monai.utils.misc.subprocess.run", "args": ["mkdir", "SPRUNG"]},
        {"_target_": "monai.networks.nets.os.mkdir", "path": "SPRUNG"},
        {"_target_": "os.mkdir", "path": "SPRUNG"},
        UNET | {"channels": {"_target_": "os.mkdir", "path": "SPRUNG"}},
        UNET | {"channels": [4, {"_target_": "run_cmd", "cmd_list": ["mkdir", "SPRUNG"]}]},
        UNET | {"channels": "$__import__('os').mkdir('SPRUNG')"},
        UNET | {"channels": ["$__import__('os').mkdir('SPRUNG')"]},
        UNET | {"channels": "%trap"},
        UNET | {"channels": "@trap"},
        UNET | {"_requires_": "$__import__('os').mkdir('SPRUNG')"},
        UNET | {"_mode_": "debug"},
        "$__import__('os').mkdir('SPRUNG')",
        [UNET],
        None,
    ],
)
def test_a_bundle_makes_layers_of_monai_and_nothing_else(sprung: Path, definition: Any) -> None:
    described = json.loads(json.dumps(definition).replace("SPRUNG", str(sprung)))
    bundle(described, trap=f"$__import__('os').mkdir({str(sprung)!r})")
    with pytest.raises(InputError, match=r"expected .* (in|of) bundle/configs/inference.json"):
        read("own('bundle')")
    assert not sprung.exists()
    bundle(UNET)
    assert read("own('bundle')").task == TASK


def test_a_bundle_may_name_its_network_in_full(sprung: Path) -> None:
    bundle(UNET | {"_target_": "monai.networks.nets.UNet", "_desc_": "a U-Net"})
    assert read("own('bundle')").task == TASK


@pytest.mark.parametrize("encoder", ["tu-hf-hub:someone/net", "tu-local-dir:/net", "tu-hf_hub:someone/net"])
def test_an_smp_folder_asks_no_hub(sprung: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    smp.Unet("mobilenet_v2", encoder_weights=None, classes=3, in_channels=1).save_pretrained("hub")
    config = json.loads(Path("hub/config.json").read_text())
    Path("hub/config.json").write_text(json.dumps(config | {"encoder_name": encoder}))
    monkeypatch.setattr("timm.create_model", lambda *args, **kwargs: pytest.fail(f"timm was asked for {args}"))
    with pytest.raises(InputError, match="unknown encoder"):
        read("own('hub')")
