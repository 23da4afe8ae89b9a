"""A network that does not fit, from the command line: one sentence, exit code 2, and nothing written."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.scans import write_decathlon
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

class Nan(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * float("nan")

class Cut(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.detach())

class Blind(Cut):
    black_box = True

def four(): return nn.Conv2d(1, 4, 3, padding=1)
def cube(): return nn.Conv3d(1, 4, 3, padding=1)
def nan(): return Nan(1, 4, 1)
def blind(): return Blind(1, 4, 3, padding=1)
def cut(): return Cut(1, 4, 3, padding=1)
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
    code, _, stderr = printed(*words)
    return code, stderr


def printed(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr in one line each."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    return result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "own('net.py:two')",
            "expected 4 channels from the network, one for each of background, label_1, label_2, "
            "label_3, got 2 channels",
        ),
        ("own('two.ts')", "expected 4 channels from the network"),
        ("own('net.py:rgb')", "to have 3 channels, but got 1 channels instead'; give the dims=, channels= and size="),
        ("own('net.py:fails')", "got KeyError: 'early' in net.py, line"),
        ("own('net.py:quits')", "got SystemExit: 3 in net.py, line"),
        ("own('net.py:late')", "got 'KeyError: 'late' in net.py, line 6'; give the dims=, channels= and size="),
        ("own('newer.ts')", "newer.ts, got 'Attempted to read a PyTorch file with version 99"),
        ("own('cut.ts')", "reads in cut.ts, got 'PytorchStreamReader failed reading zip archive"),
        ("own('state.pt')", "if torch.save wrote it, give it beside its Python: own('file.py:factory', weights=...)"),
        ("own('fixed.pt2')", "expected trust=True beside fixed.pt2"),
        ("own('fixed.pt2', trust=True)", "got 'AssertionError: Guard failed: input.size()[2] == 9"),
        ("own('newer.pt2', trust=True)", "newer.pt2, got 'Saved archive version 99 does not match"),
        ("own('empty')", "expected a network's folder at empty, with SMP's config.json or a MONAI bundle's"),
        ("own('hub')", "name another: hub holds config.json"),
        (
            "own('bundle')",
            "model.pt, a file of safetensors or of torch.save(model.state_dict()), got none; name another: ",
        ),
        (
            "own('net.py:cube', dims=3, window=(8, 16))",
            "expected window of 3 sides for dims=3, got (8, 16); change one",
        ),
        ("own('net.py:four', window=(8, 8, 8))", "expected window of 2 sides for dims=2, got (8, 8, 8); change one"),
        ("own('net.py:cube', dims=3, size=(8, 16))", "expected size of 3 sides for dims=3, got (8, 16); change one"),
        ("own('misspelt')", "got TypeError: UNet.__init__() got an unexpected keyword argument 'chanels'"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, of what it then raises
def test_it_is_told(place: Path, spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["--data", place / "data", "--model", spec]
    attack = "attack", *words, "--attack", "noise", "--eps", "0.01", "--no-checks", "--out", tmp_path / "runs"
    for command in (attack, ("doctor", *words)):
        code, stderr = run(*command)
        (sentence,) = " ".join(stderr.split()).split("error: ")[1:]
        assert message in sentence
        assert code == 2
        assert "Traceback" not in stderr
    assert not (tmp_path / "runs").exists()


def attack(data: Path, spec: str, out: Path, *more: object) -> tuple[int, str, str]:
    return printed("attack", "--data", data, "--model", spec, "--eps", "0.05", "--out", out, *more)


@pytest.mark.parametrize("more", [(), ("--no-checks",)])
def test_a_network_that_answers_nan_is_told_by_name(place: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    code, _, stderr = attack(place / "data", f"own('{place}/net.py:nan')", tmp_path / "runs", *more)
    assert code == 2
    assert f"error: own(net='{place}/net.py:nan'): expected finite log-odds, got NaN or infinity on " in stderr
    assert "Traceback" not in stderr


def test_doctor_says_that_the_output_is_nan(place: Path) -> None:
    code, shown, _ = printed("doctor", "--data", place / "data", "--model", f"own('{place}/net.py:nan')")
    assert code == 1
    assert "looks like NaN or infinity in 100% of its values" in shown
    assert "MA022 invalid" in shown
    assert "the output itself is NaN or infinite" in shown


def test_a_black_box_is_no_defect(place: Path, tmp_path: Path) -> None:
    data, spec = place / "data", f"own('{place}/net.py:blind')"
    code, shown, stderr = printed("doctor", "--data", data, "--model", spec)
    assert "Next:" not in stderr
    assert set(re.findall(r"MA\d+", shown)) == {"MA014"}  # its weights are random, which is one
    assert code == 1
    assert "gradient none, a black box: use attacks without gradients" in shown
    code, shown, _ = attack(data, spec, tmp_path / "runs", "--attack", "square(queries=2)")
    assert (code, "MA002" in shown) == (0, False)
    code, _, stderr = printed("evaluate", "--data", data, "--model", spec, "--out", tmp_path / "clean")
    assert (code, "--attack square" in stderr, "--loss" in stderr) == (0, True, False)
    _, _, stderr = printed(
        "evaluate", "--data", data, "--model", f"own('{place}/net.py:four')", "--out", tmp_path / "on"
    )
    assert "--loss bce" in stderr


@pytest.mark.parametrize("name", ["cut", "blind"])
@pytest.mark.parametrize("attacked_by", ["pgd", "strongest", "deepfool", "uap(epochs=1)", "restarts(fgsm)"])
def test_an_attack_that_needs_a_gradient_where_there_is_none_is_refused(
    place: Path, tmp_path: Path, name: str, attacked_by: str
) -> None:
    spec = f"own('{place}/net.py:{name}')"
    for more in ((), ("--no-checks",)):
        options = ("--attack", attacked_by, "--no-control", *more)
        code, _, stderr = attack(place / "data", spec, tmp_path / "runs", *options)
        says = "expected a gradient of the output of the network by the image, got none (MA002); remove detach()"
        assert (code, f"error: own(net='{place}/net.py:{name}'): {says}" in stderr) == (2, True)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_search_without_gradients_runs_where_there_is_none_and_the_flag_stays(place: Path, tmp_path: Path) -> None:
    spec = f"own('{place}/net.py:cut')"
    code, shown, _ = attack(place / "data", spec, tmp_path / "runs", "--attack", "square(queries=2)")
    assert (code, "MA002" in shown) == (0, True)


def test_doctor_promises_nothing_about_attacks(place: Path) -> None:
    code, shown, _ = printed("doctor", "--data", place / "data", "--model", f"own('{place}/net.py:blind')")
    assert "robustness" not in shown
    assert (code, set(re.findall(r"MA\d+", shown))) == (1, {"MA014"})  # its weights are random


def test_a_scan_is_never_counted_as_a_slice(place: Path, tmp_path: Path) -> None:
    spec, says = f"own('{place}/net.py:cube', dims=3)", "expected --unit volume or patient for a 3-D model"
    slices = ("--unit", "slice")
    code, _, stderr = attack(place / "data", spec, tmp_path / "runs", *slices)
    assert (code, says in stderr, (tmp_path / "runs").exists()) == (2, True, False)
    code, _, stderr = printed("evaluate", "--data", place / "data", "--model", spec, "--out", tmp_path / "e", *slices)
    assert (code, says in stderr, (tmp_path / "e").exists()) == (2, True, False)
    assert attack(place / "data", spec, tmp_path / "runs", "--no-checks")[0] == 0
    code, _, stderr = printed("compare", tmp_path / "runs", *slices)
    assert (code, says in stderr) == (2, True)
    assert printed("compare", tmp_path / "runs", "--unit", "patient")[0] == 0


def test_verify_names_the_files_of_a_model_that_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home = "--home", tmp_path / "home"
    own = tmp_path / "own.py"
    own.write_text(SOURCE)
    words = "--save-adversarial", "all", "--no-checks"
    assert attack(place / "data", f"own('{own}:four')", tmp_path / "runs", *words)[0] == 0
    assert printed("verify", tmp_path / "runs", *home)[0] == 2
    assert printed("verify", tmp_path / "runs", *home, "--trust")[0] == 0
    assert printed("verify", tmp_path / "runs", *home)[0] == 0
    own.write_text(SOURCE + "\n# changed")
    code, _, stderr = printed("verify", tmp_path / "runs", *home, "--trust")
    assert code == 2
    assert f"got others; restore what changed since ({own}), or attack again" in stderr


def test_headers_cannot_be_kept_of_scans_that_are_not_written(place: Path, tmp_path: Path) -> None:
    code, _, stderr = attack(place / "data", f"own('{place}/net.py:four')", tmp_path / "runs", "--keep-headers")
    assert (code, (tmp_path / "runs").exists()) == (2, False)
    assert "expected --save-adversarial beside --keep-headers, got none" in stderr
