"""Results that cannot be written, interruptions, and what the system refuses: no traceback, and the right exit code."""

import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import typer
from helpers.command import medattack
from helpers.dicoms import tiny_model
from helpers.sources import write_pictures
from rich.text import Text

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.ls import KINDS
from medseg_attack.cli.stored import STORED
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.storage import files
from medseg_attack.storage.heartbeats import WORKERS

TOOL = f"{sys.executable} -m medseg_attack"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{TOOL} ls attacks > /dev/full", 2),
        (f"{TOOL} ls attacks > /dev/full 2> /dev/full", 2),
        (f"{TOOL} --help > /dev/full", 2),
        (f"{TOOL} ls attacks --json | true; exit ${{PIPESTATUS[0]}}", 141),
        (f"{TOOL} ls attacks | true; exit ${{PIPESTATUS[0]}}", 141),
        (f"{TOOL} ls attacks >&-", 0),
    ],
)
def test_output_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none(line: str, code: int) -> None:
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr
    sentence = "expected to be able to write the output, got 'No space left on device'"
    assert (sentence in result.stderr) == (code == 2 and "2>" not in line)


CHATTER = """
import logging, warnings
from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.ls import KINDS
from medseg_attack.cli.stored import STORED
def app():
    import nibabel
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.warn("of a library", kind)
    for name in ("nibabel.global", "tifffile", "pydicom", "some.library"):
        logging.getLogger(name).error("of a library")
    logging.getLogger("medseg_attack.storage.locks").warning("waiting for another process")
terminal.exit_with(app)
"""


def test_what_libraries_tell_developers_reaches_no_user() -> None:
    words = [sys.executable, "-c", CHATTER]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    result = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert result.stderr == "waiting for another process\n"
    shown = subprocess.run(
        words, capture_output=True, text=True, check=True, env=environment | {"PYTHONWARNINGS": "default"}
    )
    assert "FutureWarning: of a library" in shown.stderr


INTERRUPTED = """
import importlib, os, signal, sys
class Interruption:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interruption())
module, _, function = {entry!r}.partition(":")
sys.argv = ["medattack", "ls", "objectives"]
getattr(importlib.import_module(module), function)()
"""


@pytest.mark.parametrize(
    "name", ["medseg_attack.cli", "typer", "rich.console", "medseg_attack.cli.verify", "medseg_attack.attacks", "torch"]
)
def test_an_interruption_while_the_command_starts_leaves_no_traceback(name: str) -> None:
    """The console script, interrupted where it imports a module."""
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        entry = tomllib.load(file)["project"]["scripts"]["medattack"]
    program = INTERRUPTED.format(name=name, entry=entry)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert (result.returncode, result.stdout) == (130, "")


@pytest.mark.parametrize("writes", [False, True])
def test_an_interruption_says_that_something_is_kept_where_something_was_written(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "_written", threading.Event())

    @terminal.command
    def interrupted() -> None:
        with files.whole(tmp_path / "half") as part:
            part.write_text("half")
            if not writes:
                raise KeyboardInterrupt
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as ended:
        interrupted()
    assert ended.value.exit_code == 130
    sentences = capsys.readouterr().err.splitlines()
    kept = "interrupted: what was finished is kept; go on with the same command:"
    assert sentences[0] == (kept if writes else "interrupted: nothing was written; begin again with the same command:")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    medattack("prepare", write_pictures(root / "source"), "--format", "folder", "--out", root / "data")
    tiny_model(root / "model", open_prepared(root / "data"))
    words = "--data", root / "data", "-m", root / "model", "--no-checks", "--no-control"
    medattack("attack", *words, "--save-adversarial", "all", "--out", root / "out")
    return root


COMMANDS = {
    "prepare SOURCE": ("prepare", "source", "--format", "folder", "--out", "new"),
    "prepare --out": ("prepare", "source", "--format", "folder", "--out", "closed/new"),
    "train --data": ("train", "--data", "closed/data", "--out", "new"),
    "attack --data": ("attack", "--data", "closed/data", "-m", "model", "--out", "new"),
    "attack --model": ("attack", "--data", "data", "-m", "closed/model", "--out", "new"),
    "attack --out": ("attack", "--data", "data", "-m", "model", "--out", "closed/new"),
    "attack --config": ("attack", "--data", "data", "--config", "closed/study.yaml", "--out", "new"),
    "evaluate": ("evaluate", "--data", "closed/data", "-m", "model"),
    "compare": ("compare", "closed/out"),
    "compare --csv": ("compare", "out", "--csv", "closed/a.csv"),
    "verify": ("verify", "closed/out"),
    "doctor": ("doctor", "--data", "closed/data"),
}


@pytest.mark.parametrize("kind", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_system_refuses_is_told_with_its_name(
    name: str, kind: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below a folder that may not be entered, which a test that runs as root has none of."""
    monkeypatch.chdir(workspace)
    closed = "source" if name == "prepare SOURCE" else "closed"

    reason = os.strerror(kind)

    def wrapped(system_call: Any) -> Any:
        def call(path: Any, *words: Any, **options: Any) -> Any:
            if not isinstance(path, int) and (f"/{closed}" in str(path) or str(path).startswith(closed)):
                raise OSError(kind, reason, str(path))
            return system_call(path, *words, **options)

        # as a function of the standard library: the errors of other code are called its own
        return FunctionType(call.__code__, vars(os), closure=call.__closure__)

    monkeypatch.setattr(io, "open", wrapped(io.open))
    for system_call in ("stat", "open", "scandir", "listdir", "mkdir"):
        monkeypatch.setattr(os, system_call, wrapped(getattr(os, system_call)))
    stderr = " ".join(medattack(*COMMANDS[name], code=2).stderr.split())
    assert os.strerror(kind) in stderr
    assert closed in stderr
    assert "[Errno" not in stderr
    assert not (workspace / "new").exists()


@pytest.mark.parametrize("length", [300, 5000])
def test_long_names_are_refused_in_a_sentence(length: int, workspace: Path) -> None:
    name = "a" * 300 if length == 300 else "a/" * 2500
    for words in (
        ("prepare", workspace / name, "--format", "folder"),
        ("prepare", workspace / "source", "--format", "folder", "--out", workspace / name),
        ("train", "--data", workspace / name),
        ("attack", "--data", workspace / "data", "-m", workspace / "model", "--out", workspace / name),
        ("compare", workspace / name),
    ):
        stderr = medattack(*words, code=2).stderr
        assert "Traceback" not in stderr
        assert len(stderr) < 6000


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "source", "--format", "folder"),
        ("train", "--data", "data", "--model", "unet_small", "--epochs", "1"),
        ("attack", "--data", "data", "-m", "model"),
        ("certify", "--data", "data", "-m", "model", "--certificate", "segcertify"),
        ("defend", "guarded('model', [bit_depth(bits=3)])", "--data", "data", "--steps", "1"),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_to_write_to_is_named_in_utf_8(
    words: tuple[str, ...], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    stderr = " ".join(medattack(*words, "--out", "half\udcff/new", code=2).stderr.split())
    assert "expected a folder in UTF-8 to write to, got half\\udcff" in stderr
    assert not [name for name in os.listdir(workspace) if name.startswith("half")]


def test_a_run_that_may_not_be_written_to_is_verified_and_not_marked(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "verified.json")

    monkeypatch.setattr(os, "replace", refuse)
    assert "ok" in medattack("verify", workspace / "out").stdout
    assert "is not marked beside it" in caplog.text
    assert not list((workspace / "out").rglob("verified.json"))


def test_a_full_disk_is_never_a_finished_run(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some disks say so only when the file is synchronised, long after it was written."""
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        if Path(f"/proc/self/fd/{descriptor}").resolve().parent.name == WORKERS:
            return
        calls += 1
        if calls == failing and stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    words = "--data", workspace / "data", "-m", workspace / "model", "--no-checks", "--no-control"
    failing = 0
    while True:
        failing, calls = failing + 1, 0
        out = tmp_path / str(failing)
        command = "attack", *words, "--save-adversarial", "all", "--out", out
        if failing > 40:
            pytest.fail("there is no end")
        try:
            stderr = medattack(*command, code=2).stderr
        except AssertionError:
            assert calls < failing  # so many files are written, and no more
            break
        assert "room on the disk" in " ".join(stderr.split())
        failing, kept = -1, failing
        medattack(*command)
        failing = kept
    assert failing > 8


@pytest.mark.parametrize(("failing", "code"), [(1, 2), (2, 0)], ids=["first", "last"])
def test_a_run_is_finished_though_the_last_record_of_its_worker_finds_no_room(
    failing: int, code: int, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        if Path(f"/proc/self/fd/{descriptor}").resolve().parent.name == WORKERS:
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    words = "--data", workspace / "data", "-m", workspace / "model", "--no-checks", "--no-control"
    stderr = medattack("attack", *words, "--out", tmp_path / "out", code=code).stderr
    assert ("room on the disk" in " ".join(stderr.split())) == (code == 2)
    assert len(list((tmp_path / "out").rglob("run.json"))) == (code == 0)
    assert calls == failing


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("scan.nii.gz", ["compare", "out", "--csv"]),
        ("train.csv", ["compare", "out", "--csv"]),
        ("train.csv", ["evaluate", "--data", "data", "-m", "model", "--out", "new", "--csv"]),
        ("source/images/p0.png", ["compare", "out", "--csv", "new.csv", "--plot"]),
        ("scan.nii.gz", ["compare", "out", "--fail-if", "adv_dice<0", "--csv", "new.csv", "--junit"]),
        ("scan.nii.gz", ["compare", "out", "--csv", "new.csv", "--html"]),
        ("/dev/null", ["compare", "out", "--csv"]),
    ],
)
def test_an_output_overwrites_nothing_that_another_tool_wrote(
    file: str, words: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    (workspace / "scan.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(256)))
    (workspace / "train.csv").write_text("id,class,segmentation\n")
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "replace", None)  # a test that runs as root would lose /dev/null for all
    stderr = medattack(*words, file, code=2).stderr
    assert f"or one that medattack wrote, got {file}" in " ".join(stderr.split())
    assert {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()} == before


def test_an_output_overwrites_that_of_the_run_before(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    for _ in range(2):
        medattack("compare", "out", "--deltas", "--csv", "deltas.csv", "--fail-if", "adv_dice<0", "--junit", "a.xml")
        for ending in ("png", "pdf", "svg"):
            medattack("compare", "out", "--csv", "a.csv", "--plot", f"a.{ending}")
        medattack("compare", "out", "--html", "a.html")


def test_a_figure_is_drawn_without_a_home_and_nothing_is_said_of_it(workspace: Path, tmp_path: Path) -> None:
    run = workspace / "out"
    line = [*TOOL.split(), "compare", str(run), "--plot", str(tmp_path / "a.png")]
    nowhere = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), "/proc/nowhere")
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | nowhere)
    assert result.returncode == 0
    assert " ".join(result.stderr.split()) == f"wrote {tmp_path / 'a.png'} Next: medattack report {run}"


def test_a_study_may_come_through_a_pipe(workspace: Path) -> None:
    words = ["attack", "--data", workspace / "data", "--no-control", "--no-checks", "--out", workspace / "piped"]
    for program, text, code in (("echo", f"models: [{workspace / 'model'}]\nattacks: [fgsm]", 0), ("yes", "y", 2)):
        # as <(...) in a shell hands it over
        with subprocess.Popen([program, text], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            result = medattack(*words, "--config", f"/dev/fd/{writer.stdout.fileno()}", code=code)
            writer.kill()
    assert "more than 1048576 characters from a pipe" in " ".join(result.stderr.split())


def test_a_verdict_fits_100_columns_whatever_the_model_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    label = f"nnunet(folder='{'RESULTS/' * 20}Dataset027_ACDC/nnUNetTrainer__nnUNetPlans__2d', fold=0)"
    verdict = "not decided: no attack that does not know it did harm to 60 % of the patients who were looked at"
    terminal.conclude(f"{label}: {verdict}")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "".join(lines).replace(" ", "") == f"{label}: {verdict}".replace(" ", "")


@pytest.mark.parametrize("what", [what for what in KINDS if what not in STORED])
def test_lists_break_words_at_punctuation_alone(what: str) -> None:
    text = medattack("ls", what).stdout
    for row in json.loads(medattack("ls", what, "--json").stdout):
        words = " ".join(str(value) for key, value in row.items() if key != "parameters").split()
        broken = [piece for word in words for piece in re.findall(r"[^(,_=/-]+", word) if piece not in text]
        assert not broken, row


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (27, ["in DATASET/TRAINER__PLANS__", "CONFIGURATION, (2,3)"]),
        (16, ["in DATASET/", "TRAINER__PLANS__", "CONFIGURATION,", "(2,3)"]),
        (9, ["in", "DATASET/", "TRAINER__", "PLANS__", "CONFIGURA", "TION,", "(2,3)"]),
    ],
)
def test_a_word_that_is_longer_than_its_line_breaks_at_punctuation_where_it_can(width: int, lines: list[str]) -> None:
    text = Text.assemble("in ", ("DATASET/TRAINER__PLANS__CONFIGURATION", "bold"), ", (2,3)")
    console = consoles.out()
    shown = console.render_lines(text, console.options.update(width=width), pad=False)
    assert ["".join(segment.text for segment in line).rstrip() for line in shown] == lines
