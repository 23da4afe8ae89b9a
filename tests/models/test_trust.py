"""Code that a file names: nothing of it is run before the person who runs the command trusted that very code."""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.command import medattack
from helpers.scans import write_decathlon
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models import checkpoints
from medseg_attack.models.importers.source_code import source_of
from medseg_attack.models.model_ref import resolve
from medseg_attack.models.trust import LIST, code_in, refuse_untrusted, use_trust
from medseg_attack.registry import build
from medseg_attack.registry.table import entries, load
from medseg_attack.types import Task

TASK = Task("organs", ("background", "label_1", "label_2", "label_3"), exclusive=True)
SOURCE = """
import os
from torch import nn
os.makedirs({sprung!r}, exist_ok=True)
def build(): return nn.Conv2d(1, 4, 3, padding=1)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trust")
    write_decathlon(root / "raw")
    medattack("prepare", root / "raw", "--format", "decathlon", "--out", root / "data")
    return root / "data"


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that code of others makes when it runs; beside it are that code and a workspace."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MEDATTACK_HOME", str(tmp_path / "workspace"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("net.py").write_text(SOURCE.format(sprung=str(tmp_path / "sprung")))
    use_trust(None, False)  # not what a command of a test before trusted
    yield tmp_path / "sprung"
    sys.modules.pop("net", None)  # another test's module has that name, too
    use_trust(None, False)


def checkpoint(spec: str) -> Path:
    """A checkpoint of a small network whose card says that it is built from `spec`."""
    folder = Path("model")
    model: Any = build("unet_small", "model")(TASK)
    checkpoints.save(folder, model, {"label": "net", "spec": "unet_small"})
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"spec": spec}))
    return folder


def results_folder() -> None:
    """A results folder of nnU-Net whose checkpoint makes a folder when it is unpickled."""
    Path("results/fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        Path("results", name).write_text("{}")
    torch.save((Trap(Path("../sprung")),), "results/fold_0/checkpoint_final.pth")


class Trap:
    """What unpickling makes a folder of."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def script() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Conv2d(1, 4, 1)).save("net.ts")


SPECS = {
    "file": "own('net.py:build')",
    "module": "own('net:build')",
    "by keyword": "own(normalise='zscore', net='net.py:build')",
    "pickle": "nnunet('results', trust=True)",
    "program": "own('net.ts')",
    "export": "own('net.pt2', trust=True)",
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest, sprung: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(Path.cwd())
    results_folder()
    script()
    Path("net.pt2").write_bytes(b"")
    return SPECS[str(request.param)]


def refused(*words: object) -> str:
    """The sentence with which a command refuses what it was given."""
    return " ".join(medattack(*words, code=2).stderr.split())


def test_a_card_names_no_code(spec: str, sprung: Path) -> None:
    model = checkpoint(spec)
    for read in (checkpoints.load, resolve):
        with pytest.raises(InputError, match=r"expected no code in model/card.json but what you trusted, got .* run "):
            read(model if read is checkpoints.load else str(model), TASK)  # type: ignore[operator]
    assert not sprung.exists()


def test_no_command_runs_the_code_of_a_card(sprung: Path, data: Path) -> None:
    model = checkpoint("own('net.py:build')")
    common = "--data", data, "--limit", "1"
    for words in (
        ("attack", *common, "--model", model, "--out", "runs"),
        ("evaluate", *common, "--model", model, "--out", "scores"),
        ("doctor", "--data", data, "--model", model),
        ("attack", *common, "--model", "oracle", "--attack", f"transfer(surrogate='{model}')", "--out", "runs"),
        ("attack", *common, "--model", "oracle", "--attack", f"restarts(transfer(checkpoint('{model}')))"),
    ):
        assert f"expected no code in {model}/card.json but what you trusted, got own(" in refused(*words)
    assert not sprung.exists()
    assert sorted(path.name for path in Path().iterdir()) == ["model", "net.py"]


@pytest.mark.parametrize("field", ["models", "attacks", "nested"])
def test_a_study_file_names_no_code(spec: str, field: str, sprung: Path, data: Path) -> None:
    content: dict[str, Any] = {"models": [spec]}
    if field != "models":
        transfer = f"transfer(surrogate={spec})"
        content = {
            "models": ["oracle"],
            "attacks": [transfer if field == "attacks" else f"restarts(attack={transfer})"],
        }
    Path("study.yaml").write_text(yaml.safe_dump(content))
    sentence = refused("attack", "--data", data, "--config", "study.yaml", "--out", "runs")
    assert "expected no code in study.yaml but what you trusted, got " in sentence
    assert not sprung.exists()
    assert not Path("runs").exists()


def test_a_study_s_code_is_not_looked_at_where_the_command_line_names_another_model(sprung: Path, data: Path) -> None:
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\nattacks: [noise]\n")
    words = "--data", data, "--config", "study.yaml", "--out", "runs", "--limit", "1", "--eps", "0.1"
    medattack("attack", *words, "--model", "own('net.py:build')")  # what a person writes is run
    assert sprung.exists()


def test_a_run_names_no_code(sprung: Path, data: Path) -> None:
    words = "--data", data, "--limit", "1", "--out", "runs", "--eps", "0.1", "--save-adversarial", "all", "--no-checks"
    medattack("attack", *words, "--model", "own('net.py:build')", "--attack", "noise")
    shutil.rmtree(sprung)
    sentence = refused("verify", "runs")
    assert "expected no code in runs/study.yaml but what you trusted, got own(net='net.py:build')" in sentence
    assert f"which would run {Path('net.py').resolve()}" in sentence
    assert not sprung.exists()
    medattack("verify", "runs", "--trust")
    assert sprung.exists()


def test_trust_is_remembered_until_the_code_changes(sprung: Path, data: Path, tmp_path: Path) -> None:
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\nattacks: [noise]\n")
    words = "attack", "--data", data, "--config", "study.yaml", "--limit", "1", "--eps", "0.1", "--no-checks"
    medattack(*words, "--out", "a", "--trust")
    medattack(*words, "--out", "b")
    Path("study.yaml").write_text("models: [\"own('net.py:other')\"]\nattacks: [noise]\n")
    assert "got own('net.py:other')" in refused(*words, "--out", "c")  # another function of that file
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\nattacks: [noise]\n")
    Path("net.py").write_text(Path("net.py").read_text() + "# changed")
    assert "expected no code in study.yaml" in refused(*words, "--out", "c")
    assert list(json.loads((tmp_path / "workspace" / LIST).read_text()).values()) == ["own('net.py:build')"]


def test_a_workspace_of_somebody_trusts_nothing(
    sprung: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("study.yaml").write_text("models: [\"own('net.py:build')\"]\nattacks: [noise]\n")
    words = "attack", "--data", data, "--config", "study.yaml", "--limit", "1", "--eps", "0.1", "--no-checks"
    medattack(*words, "--out", "a", "--trust")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another person"))
    assert "expected no code in study.yaml" in refused(*words, "--out", "b")


def test_the_modules_that_trusted_code_imports_are_part_of_it(sprung: Path) -> None:
    Path("net.py").write_text("import blocks\ndef build(): return blocks.net()\n")
    Path("blocks.py").write_text("def net(): ...\n")
    spec, card = "own('net.py:build')", Path("card.json")
    use_trust(Path("home"), True)
    refuse_untrusted([spec], card)
    use_trust(Path("home"), False)
    refuse_untrusted([spec], card)
    Path("blocks.py").write_text("def net(): print()\n")
    with pytest.raises(InputError, match=r"which would run .*net.py, .*blocks.py"):
        refuse_untrusted([spec], card)


def test_data_is_no_code(sprung: Path) -> None:
    Path("hub").mkdir()
    for spec in ("own('net.onnx')", "own('hub')", "own('net.pt2')", "nnunet('results')", "unet_small", "models/unet"):
        assert list(code_in(spec)) == []


def test_a_card_is_built_from_a_network(sprung: Path) -> None:
    for spec in ("checkpoint('model')", "others", "pgd", "own("):
        with pytest.raises(InputError, match=r"expected|unknown"):
            checkpoints.load(checkpoint(spec), TASK)


def test_models_that_run_code_say_so() -> None:
    """An option `trust`, or one that takes a factory, makes a model run code: `code` of its entry must tell which."""
    load()
    models = [entry for entry in entries.values() if entry.kind == "model"]
    assert {entry.name for entry in models if entry.takes("trust")} == {entry.name for entry in models if entry.code}


# what a factory's code depends on


def write(**files: str) -> None:
    for name, text in files.items():
        path = Path(name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def modules(net: str) -> list[str]:
    return sorted(path.relative_to(Path.cwd()).as_posix() for path in source_of(net).modules)


def test_imports_are_followed_without_running_them(sprung: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    write(
        net="import a, torch\nfrom pkg.deep import block\ndef f():\n    from late import g\n",
        a="import net, os.path\n",
        late="raise SystemExit",
        unused="",
        pkg__init="",
        pkg__deep__block="from . import other\nfrom .. import up\nfrom ..side import thing\n",
        pkg__deep__other="",
        pkg__up="",
        pkg__side="thing = 1\n",
    )
    Path("pkg/init.py").rename("pkg/__init__.py")
    known = ["a.py", "late.py", "net.py", "pkg/__init__.py", "pkg/deep/block.py", "pkg/deep/other.py"]
    known += ["pkg/side.py", "pkg/up.py"]
    assert modules("net.py:build") == modules("net:build") == known
    assert modules("absent:build") == modules("absent.py:build") == []
    installed = {path.name for path in source_of("segmentation_models_pytorch.base:x").modules}
    assert {"__init__.py", "model.py"} <= installed


def test_code_names_files_and_variables(sprung: Path) -> None:
    write(net="import os\nW = os.environ['WIDTH']\nD = os.getenv('DEPTH', 2)\nos.environ.get('KIND')\nopen('c.json')\n")
    Path("c.json").write_text("{}")
    source = source_of("net.py:build")
    assert source.variables == ("DEPTH", "KIND", "WIDTH")
    assert source.files == (Path("c.json").resolve(),)
