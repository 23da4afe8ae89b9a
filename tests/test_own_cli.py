"""A network that does not fit, from the command line: one sentence, exit code 2, and nothing written."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from scans import write_decathlon
from torch import nn
from typer.testing import CliRunner

from medseg_attack.cli import app

SOURCE = """
from torch import nn

class Late(nn.Conv2d):
    def forward(self, x):
        raise KeyError("late")

def two(): return nn.Conv2d(1, 2, 3, padding=1)
def rgb(): return nn.Conv2d(3, 4, 3, padding=1)
def fails(): raise KeyError("early")
def quits(): raise SystemExit(3)
def late(): return Late(1, 4, 1)
"""
UNET = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 4, "channels": [4, 8], "strides": [2]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of four classes, and networks in files and folders that do not fit them or are broken."""
    root = tmp_path_factory.mktemp("own")
    write_decathlon(root / "raw")
    assert run("prepare", root / "raw", "--format", "decathlon", "--out", root / "data")[0] == 0
    (root / "net.py").write_text(SOURCE)
    for name, classes in (("right", 4), ("two", 2)):
        net, image = nn.Conv2d(1, classes, 3, padding=1).eval(), torch.rand(1, 1, 9, 7)
        script(net, image, root / f"{name}.ts")
    copied(root / "right.ts", root / "newer.ts", "version", b"99\n")
    (root / "cut.ts").write_bytes((root / "right.ts").read_bytes()[:600])
    torch.save(net.state_dict(), root / "state.pt")
    torch.export.save(torch.export.export(net, (image,)), root / "fixed.pt2")
    copied(root / "fixed.pt2", root / "newer.pt2", "archive_version", b"99")
    (root / "empty").mkdir()
    (root / "hub").mkdir()
    config = {"_model_class": "Unet", "encoder_name": "mobilenet_v2", "encoder_weights": None}
    (root / "hub" / "config.json").write_text(json.dumps(config))
    for name, definition in (("bundle", UNET), ("misspelt", UNET | {"chanels": [1]})):
        (root / name / "configs").mkdir(parents=True)
        (root / name / "configs" / "inference.json").write_text(json.dumps({"network_def": definition}))
    return root


def script(net: nn.Module, image: torch.Tensor, path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, image).save(path)


def copied(source: Path, target: Path, name: str, content: bytes) -> None:
    """An archive with another content in one of its files."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(f"/{name}") else old.read(info))


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    return result.exit_code, result.stderr


@pytest.mark.parametrize(("spec", "told"), [
    ("own('net.py:two')", "expected 4 channels from the network, one for each of background, label_1, label_2, "
                          "label_3, got 2 channels"),
    ("own('two.ts')", "expected 4 channels from the network"),
    ("own('net.py:rgb')", "to have 3 channels, but got 1 channels instead'; check its dims=, channels= and size="),
    ("own('net.py:fails')", "got KeyError: 'early' in net.py, line"),
    ("own('net.py:quits')", "got SystemExit: 3 in net.py, line"),
    ("own('net.py:late')", "got 'KeyError: 'late' in net.py, line 6'; check its dims=, channels= and size="),
    ("own('newer.ts')", "newer.ts, got 'Attempted to read a PyTorch file with version 99"),
    ("own('cut.ts')", "reads in cut.ts, got 'PytorchStreamReader failed reading zip archive"),
    ("own('state.pt')", "if torch.save wrote it, give it beside its Python: own('file.py:factory', weights=...)"),
    ("own('fixed.pt2')", "expected trust=True beside fixed.pt2"),
    ("own('fixed.pt2', trust=True)", "got 'AssertionError: Guard failed: input.size()[2] == 9"),
    ("own('newer.pt2', trust=True)", "newer.pt2, got 'Saved archive version 99 does not match"),
    ("own('empty')", "expected a network's folder at empty, with SMP's config.json or a MONAI bundle's"),
    ("own('hub')", "expected weights in hub/model.safetensors, got no such file"),
    ("own('bundle')", "expected weights in bundle/models/model.pt, got no such file"),
    ("own('misspelt')", "got TypeError: UNet.__init__() got an unexpected keyword argument 'chanels'"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # torch's, of what it then raises
def test_it_is_told(place: Path, spec: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["--data", place / "data", "--model", spec]
    attack = "attack", *words, "--attack", "noise", "--eps", "0.01", "--no-checks", "--out", tmp_path / "runs"
    for command in (attack, ("doctor", *words)):
        code, said = run(*command)
        (sentence,) = " ".join(said.split()).split("error: ")[1:]
        assert told in sentence
        assert code == 2
        assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()
