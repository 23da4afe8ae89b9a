"""Training by several processes of torchrun: the curve of one process, also when one of them is killed."""

import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from helpers.discs import CPU
from helpers.killed import exit_codes, kill_at
from torch.nn import functional

from medseg_attack.cli import app
from medseg_attack.defences.training.base import TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import load_tensors
from medseg_attack.registry import build, names
from medseg_attack.training import distributed
from medseg_attack.training.distributed import ALONE, ProcessGroup, process_group

# the command, in a process that is killed as hard as can be in the middle of the second epoch of its first life
PROGRAM = textwrap.dedent(
    """
    import os, signal, sys
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from medseg_attack.__main__ import main

    torch.set_num_threads(1)
    steps, last = 0, int(sys.argv[1])

    def kill(*_):
        global steps
        steps += 1
        if steps == last and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(kill)
    sys.argv = ["medattack", *sys.argv[2:]]
    main()
    """
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    spec = "phantom(patients=8, slices=3, side=32)"
    medattack("prepare", folder / "scans", "--format", spec, "--out", folder / "data")
    return folder / "data"


def words(data: Path, out: Path, *more: str) -> list[str]:
    network = ["--model", "unet_small(channels=(8, 16))", "--epochs", "3", "--batch-size", "4"]
    return ["train", "--data", str(data), "--out", str(out), *network, "--device", "cpu", "--no-progress", *more]


def torchrun(script: list[str], *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *script], capture_output=True, text=True, env=environment, check=False)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return int(place.getsockname()[1])


def curve(folder: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key != "seconds" and value} for row in rows]


def require_same(one: Path, two: Path) -> None:
    """Two trainings of one curve, which left the same files."""
    curves = curve(one), curve(two)
    assert len(curves[0]) == len(curves[1]) == 3
    for alone, together in zip(*curves, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together == pytest.approx(alone, abs=8e-3)  # Dice counts pixels: the last bit turns some, 0.002 each
    weights = [load_tensors(folder / "weights.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}


def train_as(rank: int, port: int, words: list[str], last: int) -> None:
    """One of two processes, as torchrun starts them; killed at its `last` step, if that is not 0."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    if last:
        kill_at(torch.optim.AdamW, "step", last)
    app(words)


def test_two_processes_train_as_one_does_and_again_after_one_was_killed(data: Path, tmp_path: Path) -> None:
    medattack(*words(data, tmp_path / "one"))
    asked = words(data, tmp_path / "two")
    port = free_port()
    codes = exit_codes(train_as, (0, port, asked, 0), (1, port, asked, 6))  # 16 cases, batches of 4: in epoch 2
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    assert not (tmp_path / "two" / "weights.safetensors").exists()
    port = free_port()
    assert exit_codes(train_as, (0, port, asked, 0), (1, port, asked, 0)) == [0, 0]
    require_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # six processes that load torch; above is the same without torchrun
def test_torchrun_trains_as_one_process_does_though_one_of_two_is_killed(data: Path, tmp_path: Path) -> None:
    medattack(*words(data, tmp_path / "one"))
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    steps = 6  # 16 training cases or so in batches of 4: in the second epoch
    result = torchrun([str(script), str(steps), *words(data, tmp_path / "two")], "--max-restarts", "1")
    assert result.returncode == 0, result.stderr
    assert "-9" in result.stderr, "no process was killed"
    assert result.stdout.count("best epoch") == 1  # the first process alone prints
    require_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # two processes that load torch; what is refused is tested below
def test_what_processes_cannot_share_is_refused_in_a_sentence(data: Path, tmp_path: Path) -> None:
    result = torchrun(["-m", "medseg_attack", *words(data, tmp_path / "odd", "--batch-size", "3")])
    assert result.returncode == 1
    sentence = "expected batches that 2 processes share equally, got batches of 3; use --batch-size 4"
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(("batch_size", "n_cases", "fits"), [(4, 9, True), (6, 9, True), (3, 9, False), (4, 3, False)])
def test_batches_must_have_equal_parts(batch_size: int, n_cases: int, fits: bool) -> None:
    if fits:
        ProcessGroup(0, 2).require(batch_size, n_cases, [])
        return
    with pytest.raises(InputError, match="share equally"):
        ProcessGroup(0, 2).require(batch_size, n_cases, [])
    ALONE.require(batch_size, n_cases, [])


@pytest.mark.parametrize("name", names("defence"))
def test_a_defence_of_whole_batches_is_refused(name: str) -> None:
    try:
        defence = build(name, "defence")
    except InputError:
        pytest.skip("it has options that must be given")
    if not isinstance(defence, TrainingDefence):
        pytest.skip("it stands in front of a model and trains nothing")
    ALONE.require(4, 8, [defence])
    if name in ("adversarial", "gaussian"):
        ProcessGroup(1, 2).require(4, 8, [defence])
        return
    with pytest.raises(InputError, match=f"under torchrun, got {name}"):
        ProcessGroup(1, 2).require(4, 8, [defence])


def test_a_denoiser_is_trained_by_one_process(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = medattack("train", "--data", data, "--denoiser", "--out", tmp_path / "denoiser", code=2)
    assert "expected one process for --denoiser, got 2; train it without torchrun" in " ".join(result.stderr.split())


@pytest.fixture
def gloo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """This process in a group of one, so that what is exchanged comes back as it is."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_of_the_whole_batch_are_torchs(affine: bool, gloo: None) -> None:
    layers = [torch.nn.BatchNorm2d(3, affine=affine).double() for _ in range(2)]
    images = [torch.rand(4, 3, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    answers = []
    for number, (layer, image) in enumerate(zip(layers, images, strict=True)):
        image.requires_grad_()
        with distributed._WholeBatch(ProcessGroup()) if number else torch.enable_grad():
            answers.append(layer(image))
        answers[-1].square().sum().backward()
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images[0].grad, images[1].grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("drop", [functional.dropout, functional.dropout2d])
def test_parts_of_a_dropout_are_those_of_the_whole_batch(drop) -> None:
    image = torch.ones(4, 3, 8, 8)
    torch.manual_seed(3)
    whole = drop(image, 0.4, training=True)
    parts = []
    for index in range(2):
        torch.manual_seed(3)
        with distributed._WholeBatch(ProcessGroup(index, 2)):
            parts.append(drop(image[:2], 0.4, training=True))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group(CPU) as group:
        assert group is ALONE
