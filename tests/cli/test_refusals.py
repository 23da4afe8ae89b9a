"""What the system refuses and what people get wrong is told in a sentence; a defect says that it is one."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.killed import exit_codes, logged_command
from helpers.runs import dice_of, write_run
from safetensors import SafetensorError
from typer.testing import CliRunner

from medseg_attack import errors, registry
from medseg_attack.cli import app, terminal
from medseg_attack.data.prepared import reading as prepared
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.splits import split
from medseg_attack.errors import InputError, plural
from medseg_attack.metrics.surface import nsd
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.runs import folder as results
from medseg_attack.runs.workspace import newest_model
from medseg_attack.storage.files import whole
from medseg_attack.storage.json_files import write_json
from medseg_attack.types import Task

SMALL = "unet_small(channels=(4, 8))"
PHANTOM = "phantom(patients=6, slices=4, side=32)"


def medattack(*words: str | Path, code: int = 2) -> tuple[str, str]:
    """Stdout, and stderr on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    assert result.exit_code == code, result.output
    return result.stdout, " ".join(result.stderr.split())


def refused(*words: str | Path) -> str:
    message = medattack(*words)[1]
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a phantom and a model of one epoch."""
    home = tmp_path_factory.mktemp("workspace")
    medattack("prepare", home / "scans", "--format", PHANTOM, "--home", home, code=0)
    medattack("train", "--home", home, "--model", SMALL, "--epochs", "1", "--device", "cpu", code=0)
    return home


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "afile"
    path.write_text("something else")
    return path


def model_of(home: Path) -> Path:
    return next((home / "models").iterdir())


@pytest.mark.parametrize("below", ["", "x"])
def test_a_file_where_a_folder_should_be_is_named(home: Path, file: Path, tmp_path: Path, below: str) -> None:
    out = file / below if below else file
    assert str(file) in refused("prepare", home / "scans", "--format", PHANTOM, "--out", out)
    assert str(file) in refused("train", "--home", home, "--model", SMALL, "--epochs", "1", "--out", out)
    assert str(file) in refused("attack", "--home", home, "--model", SMALL, "--out", out)
    assert str(file) in refused("prepare", file / "src", "--format", PHANTOM, "--out", tmp_path / "out")
    assert file.read_text() == "something else"


def test_compare_names_a_file_that_it_cannot_write(file: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", dice_of(0, 3))
    for option, name in (("--csv", "x.csv"), ("--plot", "x.png")):
        assert str(file / name) in refused("compare", run, option, file / name)


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(InputError, match=r"card\.json, got 'Permission denied'"):
        write_json(tmp_path / "card.json", {})
    assert not list(tmp_path.iterdir())


def full(stored: Any, part: Path, *_: Any) -> None:
    Path(part).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_is_told_by_whoever_writes_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "save_file", full)
    monkeypatch.setattr(results, "save_file", full)
    with pytest.raises(InputError, match="room on the disk"):
        checkpoints.save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(InputError, match="room on the disk"):
        results.RunFolder(tmp_path).write_images(0, {"a": np.zeros(1)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    for name in (".run.json.4711.part", ".run.json.0a1b2c3d.part", ".run.json.other.4711.part", ".other.1.part"):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "run.json", {})
    kept = {".other.1.part", ".run.json.other.4711.part", "run.json"}  # of other targets
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_of_two_writers_the_file_is_of_one_and_both_end(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    with whole(target) as slow:
        slow.write_text("slow")
        with whole(target) as fast:
            fast.write_text("fast")
    assert target.read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(InputError, match="No such file"), whole(tmp_path / "new") as never:
        assert never.parent == tmp_path  # nothing was written: that is told


def test_seeds_and_tolerances_are_not_negative() -> None:
    with pytest.raises(InputError, match="--seed: expected 0 or more, got -1"):
        split("abcd", folds=2, test_fraction=0.2, seed=-1)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(InputError, match="tolerance_mm of 0 or more"):
            nsd(mask, mask, [(1.0, 1.0)], tolerance_mm=tolerance)


@pytest.mark.parametrize("channels", ["(4,)", "(0, 8)", "(True, 8)", "()"])
def test_channels_of_the_small_unet_are_whole_numbers(channels: str) -> None:
    with pytest.raises(InputError, match="2 or more whole numbers"):
        registry.build(f"unet_small(channels={channels})", "model")(Task("t", ("a",)))


def test_any_size_is_padded_to_what_the_network_takes(home: Path, tmp_path: Path) -> None:
    model = registry.build("unet_small(channels=(4, 8, 8), size=(33, 18))", "model")(Task("t", ("a", "b"))).eval()
    image = torch.rand(1, 1, 20, 30)
    assert model(image).shape == (1, 2, 20, 30)
    inputs: list[torch.Tensor] = []
    net = torch.nn.Conv2d(1, 2, 1)
    net.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    SegModel(net, Task("t", ("a", "b")), size=(33, 18), stride=4)(image)
    assert inputs[0].shape[2:] == (36, 20)
    assert not inputs[0][..., 33:, :].any()
    words = ["--home", home, "--model", SMALL, "--epochs", "1", "--size", "33,33", "--out", tmp_path / "out"]
    medattack("train", *words, "--device", "cpu", code=0)
    for size in ("33", "33,x", "0,33", "33,33,33"):
        assert f"expected --size ROWS,COLUMNS in pixels, got '{size}'" in refused(
            "train", "--home", home, "--size", size
        )


def test_what_cannot_be_built_leaves_no_folder(home: Path, tmp_path: Path) -> None:
    words = ["--home", home, "--model", "unet_small(channels=(4,))", "--out", tmp_path / "out"]
    assert "whole numbers" in refused("train", *words)
    assert not (tmp_path / "out").exists()
    # in a process of its own: here every argument is checked against its annotation, which is told otherwise
    words[3] = "unet_small(channels=('a', 8))"
    log = tmp_path / "log"
    assert exit_codes(logged_command, (log, ["train", *map(str, words)])) == [2]
    assert "whole numbers" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "out").exists()


def test_a_plot_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", dice_of(0, 3))
    assert ".png, .pdf, .svg" in refused("compare", run, "--plot", tmp_path / "x.foo")
    medattack("compare", run, "--plot", tmp_path / "x.PNG", code=0)


@pytest.mark.parametrize("field", ["label", "weights_sha256", "spec"])
def test_a_card_that_lacks_something_is_named(home: Path, tmp_path: Path, field: str) -> None:
    folder = shutil.copytree(model_of(home), tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    del card[field]
    (folder / "card.json").write_text(json.dumps(card))
    assert f"'{field}' in {folder / 'card.json'}" in refused("attack", "--home", home, "--model", folder)


@pytest.mark.parametrize("content", [{"task": 3}, {"task": {"name": "x", "classes": 3}}, {}])
def test_a_data_set_of_other_content_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    write_json(tmp_path / "dataset.json", content)
    write_json(tmp_path / "options.json", {})
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_prepared(tmp_path)


@pytest.mark.parametrize("content", ["{", "3", "\x00"])
def test_a_broken_identity_beside_results_is_named(home: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "identity.json").write_text(content)
    assert str(out / "identity.json") in refused("attack", "--home", home, "--model", SMALL, "--out", out)


def test_a_limit_is_finite(home: Path) -> None:
    assert "limit" in refused("attack", "--home", home, "--model", SMALL, "--limit", "inf")


def of_the_package(code: str, **names: object) -> Callable[[], None]:
    """A function of the package, not of somebody else's, that runs the code."""
    scope: dict[str, Any] = {"__name__": "medseg_attack.cli.body", "plural": plural, **names}
    exec(f"def body() -> None:\n    {code}", scope)
    body: Callable[[], None] = scope["body"]
    return body


def test_a_defect_says_that_it_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    broken = terminal.command(of_the_package("plural('inner', 'part')"))
    with pytest.raises(terminal.typer.Exit) as exited:
        broken()
    assert exited.value.exit_code == 2
    message = capfd.readouterr().err
    assert "Traceback" in message
    assert "ValueError: invalid literal" in message
    assert "defect of medattack" in message


NETWORK = """
import sys
import torch
import torch.utils.checkpoint

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no backward here")

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.cat([Backward.apply(x)] * 3, 1)

class Underived(torch.nn.Module):
    def forward(self, x):
        return torch.cat([torch.igamma(x + 1, x)] * 3, 1)

class Checkpointed(torch.nn.Module):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda x: torch.cat([x - 0.5] * 3, 1), x, use_reentrant=True)

def leave():
    sys.exit(0)
"""


@pytest.mark.filterwarnings("ignore")  # of checkpoints
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Net", "expected code that comes to its end, got NotImplementedError: no backward here in net.py, line 13;"),
        ("Underived", "derivative for 'igamma: input' is not implemented"),
        ("Checkpointed", "When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad()"),
    ],
)
@pytest.mark.parametrize("words", [("attack", "--eps", "4/255"), ("attack", "--no-checks"), ("doctor",)])
def test_an_error_of_a_network_is_no_defect(
    home: Path, tmp_path: Path, name: str, says: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    more = ("--out", tmp_path / "runs") if words[0] == "attack" else ()
    message = refused(*words, "--home", home, "--model", f"own('{tmp_path}/net.py:{name}')", "--trust", *more)
    assert says in message
    assert "defect" not in message


def test_code_that_leaves_the_program_does_not_end_a_command_well(capfd: pytest.CaptureFixture[str]) -> None:
    @terminal.command
    def leaving() -> None:
        exec(compile(NETWORK, "net.py", "exec"), scope := {"__name__": "net"})
        scope["leave"]()

    with pytest.raises(terminal.typer.Exit) as exited:
        leaving()
    assert exited.value.exit_code == 2
    assert "got SystemExit: 0 in net.py, line 28; repair that code" in " ".join(capfd.readouterr().err.split())


def test_too_little_memory_is_said_in_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    @terminal.command
    def large() -> None:
        raise MemoryError

    with pytest.raises(terminal.typer.Exit) as exited:
        large()
    assert exited.value.exit_code == 2
    assert "expected memory for this work, got 'MemoryError'; give a smaller" in " ".join(
        capfd.readouterr().err.split()
    )


@pytest.mark.parametrize(("raised", "code"), [(terminal.typer.Exit(1), 1), (KeyboardInterrupt(), 130)])
def test_what_ends_a_command_on_purpose_is_no_defect(
    raised: BaseException, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    ending = terminal.command(of_the_package("raise raised", raised=raised))
    with pytest.raises((SystemExit, terminal.typer.Exit)) as exited:
        ending()
    assert getattr(exited.value, "exit_code", getattr(exited.value, "code", None)) == code
    assert "defect" not in capfd.readouterr().err


def test_few_scans_are_open_at_a_time(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    spec = "phantom(patients=30, slices=1, side=16)"
    medattack("prepare", tmp_path / "scans", "--format", spec, "--out", out, code=0)
    data = open_prepared(out)
    assert len(data.scans) > 2 * prepared.OPEN
    for ref in (refs := data.refs("all")):
        data.read(ref)
    assert len(data._maps) == prepared.OPEN
    assert torch.equal(data.read(refs[0]).image, open_prepared(out).read(refs[0]).image)
    script = f"""
        import resource
        from pathlib import Path
        from medseg_attack.data.prepared.reading import open_prepared
        data = open_prepared(Path({str(out)!r}))
        resource.setrlimit(resource.RLIMIT_NOFILE, (56, 56))
        cases = [data.read(ref) for ref in data.refs("all")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_channels_are_said_as_a_person_would() -> None:
    model = SegModel(torch.nn.Identity(), Task("t", ("a",)))
    with pytest.raises(InputError, match="an image of 1 channel for"):
        model(torch.zeros(1, 3, 4, 4))
    model = SegModel(torch.nn.Identity(), Task("t", ("a",)), in_channels=3)
    with pytest.raises(InputError, match="an image of 1 or 3 channels for"):
        model(torch.zeros(1, 2, 4, 4))


def test_an_unknown_attack_is_answered_with_attacks(home: Path) -> None:
    message = refused("attack", "--home", home, "--model", SMALL, "--attack", "pgdd")
    assert "unknown attack" in message
    assert "did you mean pgd" in message
    assert "unet_small" not in message


def test_one_is_not_plural(tmp_path: Path) -> None:
    assert errors.plural(1, "volume") == "1 volume"
    stdout, _ = medattack("compare", write_run(tmp_path, dice_of(0, 1, 1)), "--deltas", code=0)
    assert "1 patient" in stdout
    for wrong in ("1 patients", "1 volumes", "1 scans"):
        assert wrong not in " ".join(stdout.split())


def test_a_clean_run_keeps_its_name(home: Path, tmp_path: Path) -> None:
    words = ["--home", home, "--model", SMALL, "--attack", "clean", "--device", "cpu", "--out", tmp_path / "out"]
    stdout, _ = medattack("attack", *words, code=0)
    assert len([line for line in stdout.splitlines() if line.split()[:1] == ["clean"]]) == 2


def test_a_folder_of_another_kind_is_called_what_it_is(home: Path, tmp_path: Path) -> None:
    data, model = next((home / "data").iterdir()), model_of(home)
    message = refused("train", "--home", home, "--model", SMALL, "--epochs", "1", "--out", data)
    assert f"expected a path outside of the prepared data set {data} to write to" in message
    assert "got a trained model" in refused("train", "--home", home, "--data", model, "--model", SMALL)
    with pytest.raises(InputError, match="got a prepared data set") as raised_error:
        newest_model(home, str(data))
    assert "medattack train --model" not in str(raised_error.value)
    with pytest.raises(InputError, match="did you mean unet_small"):
        newest_model(home, SMALL.replace("unet_small", "unet_smal"))
    assert "--batch-size of at least 1, got 0" in refused("train", "--home", home, "--batch-size", "0")


def test_an_unfinished_shard_is_json_too(home: Path, tmp_path: Path) -> None:
    words = ["--home", home, "--model", SMALL, "--device", "cpu", "--out", tmp_path / "out", "--split", "all", "--json"]
    stdout, message = medattack("attack", *words, "--shard", "0/2", code=0)
    assert json.loads(stdout) == {"finished": False, "shard": [0, 2], "out": str(tmp_path / "out")}
    assert "shard 0/2 is done" in message
    stdout, _ = medattack("attack", *words, "--shard", "1/2", code=0)
    assert json.loads(stdout)["runs"]


def test_a_curve_is_drawn_where_its_name_has_no_ending(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", dice_of(0, 3))
    medattack("compare", run, "--plot", tmp_path / "curve", code=0)
    assert (tmp_path / "curve").read_bytes().startswith(b"\x89PNG")
