"""Studies that other processes run: their rows are those of one process, and what cannot be launched is refused."""

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from helpers.command import medattack

from medseg_attack.errors import InputError
from medseg_attack.evaluation.launchers import jobs
from medseg_attack.evaluation.launchers.jobs import Job, logged, read_settings
from medseg_attack.evaluation.launchers.slurm import _last_line, submit, wait
from medseg_attack.evaluation.studies.opened import OpenedStudy, RunOptions
from medseg_attack.storage.heartbeats import WORKERS, at_work

pytest.importorskip("submitit", reason="the extra cluster is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workspace")
    spec = "phantom(patients=8, slices=4, side=32)"
    medattack("prepare", home / "scans", "--format", spec, "--home", home)
    network = ["--model", "unet_small(channels=(8, 16))", "--epochs", "1"]
    medattack("train", "--home", home, *network, "--device", "cpu", "--out", home / "model")
    return home


def words(home: Path, out: Path) -> list[object]:
    return ["attack", "--home", home, "-m", home / "model", "--eps", "0.01", "--split", "all", "--out", out]


def rows(study: Path) -> dict[str, pd.DataFrame]:
    return {str(file.relative_to(study)): pd.read_parquet(file) for file in sorted(study.rglob("*.parquet"))}


def require_same(one: Path, other: Path) -> None:
    first, second = rows(one), rows(other)
    assert first.keys() == second.keys()
    assert all(first[name].equals(second[name]) for name in first)
    assert (one / "identity.json").read_bytes() == (other / "identity.json").read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_array_computes_the_rows_of_one_process(home: Path, tmp_path: Path) -> None:
    """Through submitit, whose jobs run in this process."""
    medattack(*words(home, tmp_path / "one"))
    launched = medattack(
        *words(home, tmp_path / "array"), "--launcher", "slurm", "--workers", "3", "--slurm", "cluster=debug"
    )
    assert "fgsm" in launched.stdout  # all is done, so that the table is printed
    submitted, _, logs = launched.stderr.partition("logs in")
    assert "submitted" in submitted
    assert "results:" in logs
    require_same(tmp_path / "one", tmp_path / "array")
    again = medattack(*words(home, tmp_path / "array"), "--launcher", "slurm", "--json")
    assert json.loads(again.stdout)["runs"]  # nothing is submitted where nothing is missing
    gc.collect()  # submitit leaves its logs open


OWN = """
import sys
from dataclasses import dataclass
from medseg_attack.__main__ import main
from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge
from medseg_attack.registry import register
import beside

@register("mine_here", kind="attack")
@dataclass(frozen=True)
class Mine(Climbing):
    def __call__(self, model, image, target, seeds):
        if FAILS:
            raise KeyError("absent")
        return judge(model, self.ball, image, image, target)

FAILS = "--fails" in sys.argv
sys.argv = [word for word in sys.argv if word != "--fails"]
main()
"""
BESIDE = """
from medseg_attack.registry import register

@register("loss_beside", kind="objective")
def loss_beside(log_odds, target, progress=1.0):
    return -(log_odds * target).flatten(1).mean(1)
"""


@pytest.mark.slow  # jobs that load torch; test_parts_of_launchers has the mechanism
@pytest.mark.parametrize("fails", [True, False])
def test_jobs_know_the_parts_of_the_program_that_launches_them_and_name_one_that_fails(
    fails: bool, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(OWN)
    (tmp_path / "beside.py").write_text(BESIDE)
    attack = ["--attack", "mine_here(objective=loss_beside)", "--no-control", "--no-checks", "--device", "cpu"]
    launch = ["--launcher", "slurm", "--workers", "1", "--slurm", "cluster=local"]
    asked = [*words(home, tmp_path / "out"), *attack, *launch, *(["--fails"] if fails else [])]
    command = [sys.executable, "program.py", *map(str, asked)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == (2 if fails else 0), result.stderr
    if fails:
        sentence = "expected the attack mine_here to come to its end, got KeyError: 'absent' in "
        assert f"error: expected jobs that end well, got '{sentence}" in " ".join(result.stderr.split())
        assert any(sentence in log.read_text() for log in (tmp_path / "out" / WORKERS).glob("*.err"))
    else:
        assert "mine_here" in result.stdout


@pytest.mark.slow
def test_tasks_of_ray_compute_the_rows_of_one_process(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    medattack(*words(home, tmp_path / "one"))
    assert "fgsm" in medattack(*words(home, tmp_path / "ray"), "--launcher", "ray", "--ray", "num_cpus=1").stdout
    require_same(tmp_path / "one", tmp_path / "ray")
    assert "cases done" in "".join(log.read_text() for log in (tmp_path / "ray" / WORKERS).glob("*.log"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--slurm", "time=1"], "expected --launcher slurm beside --slurm, got none"),
        (["--launcher", "slurm", "--ray", "num_cpus=1"], "expected --launcher ray beside --ray, got slurm"),
        (["--workers", "3"], "expected --launcher beside --workers, got none"),
        (["--launcher", "slurm", "--shard", "0/2"], "expected --launcher without --shard, got both"),
        (["--launcher", "slurm", "--slurm", "gpu"], "expected --slurm KEY=VALUE, got 'gpu'"),
        (["--launcher", "slurm", "--slurm", "cluster=moon"], "cluster=slurm, local or debug, got 'moon'"),
    ],
)
def test_what_cannot_be_launched_is_refused(options: list[str], sentence: str, home: Path, tmp_path: Path) -> None:
    result = medattack(*words(home, tmp_path / "out"), *options, code=2)
    assert sentence in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_study_that_others_work_on_is_not_submitted_again(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with at_work(out, "0/2", "cpu", {}):
        result = medattack(*words(home, out), "--launcher", "slurm", "--slurm", "cluster=debug", code=2)
    assert f"expected a study that nobody works on, got 1 worker on {out}" in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("*.pkl"))


def test_errors_of_the_processes_that_keep_local_jobs_are_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Local(Executor):
        @contextmanager
        def batch(self) -> Iterator[None]:
            yield
            subprocess.run("echo interrupted >&2", shell=True, check=True)

    monkeypatch.setattr("submitit.AutoExecutor", Local)
    submit([job(tmp_path)], {"cluster": "local"})
    assert (tmp_path / WORKERS / "launcher.err").read_text() == "interrupted\n"
    os.write(2, b"of this process\n")
    assert capfd.readouterr().err == "of this process\n"


def test_without_slurm_the_sentence_says_where_to_run_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = medattack(*words(home, tmp_path / "out"), "--launcher", "slurm", code=2)
    assert "expected SLURM to take the jobs" in " ".join(result.stderr.split())
    assert "run it where sbatch works" in " ".join(result.stderr.split())


def job(out: Path) -> Job:
    return Job({"models": ["a"]}, Path.cwd(), out, out, "cpu", RunOptions(shard=(1, 2)))


def test_a_job_travels_and_asks_to_be_queued_again(tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(job(tmp_path)))
    assert copy == job(tmp_path)
    assert copy.checkpoint().function == copy


@pytest.mark.parametrize(
    ("n_parts", "n_chunks", "n"), [(0, (3, 5), 5), (0, (40, 2), 16), (2, (3, 5), 2), (20, (1, 1), 20)]
)
def test_a_study_has_as_many_parts_as_the_longest_model_has_chunks_and_at_most_16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_parts: int, n_chunks: tuple[int, int], n: int
) -> None:
    claimed: list[Any] = []
    monkeypatch.setattr(jobs, "claim_folder", claimed.append)
    monkeypatch.setattr(jobs, "chunks", lambda n: [()] * n)
    monkeypatch.setattr("pathlib.Path.cwd", lambda: tmp_path / "here")
    options = RunOptions(batch_size=3, save="all")
    refs, study = n_chunks.__getitem__, Mock(model_dump=lambda: {"models": ["a", "b"]})
    facts = {"models": (0, 1), "options": options, "out": tmp_path / "out", "refs": refs, "study": study}
    opened = Mock(OpenedStudy, **facts)
    parts = jobs.jobs_of(opened, tmp_path, "cuda:1", n_parts, by_model=False)
    assert claimed == [opened]
    first = Job({"models": ["a", "b"]}, tmp_path / "here", tmp_path, tmp_path / "out", "cuda:1", options)
    assert parts == [replace(first, options=replace(options, shard=(k, n))) for k in range(n)]
    each = jobs.jobs_of(opened, tmp_path, "cuda:1", n_parts, by_model=True)
    assert each == [replace(part, model=model) for model in (0, 1) for part in parts]


class Executor:
    """What submitit would do with SLURM, noted instead."""

    def __init__(self, **words: Any) -> None:
        self.log: list[Any] = [words]

    def update_parameters(self, **words: Any) -> None:
        self.log.append(words)

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.log.append("batch")
        yield
        self.log.append("end")

    def submit(self, job: Job) -> Any:
        self.log.append(job)
        return SimpleNamespace(job_id=f"7_{job.options.shard[0]}", result=lambda: self.log.append("result"))


@pytest.mark.parametrize(
    ("settings", "cluster", "name", "parameters", "more"),
    [
        ({}, "slurm", "medattack", {"slurm_time": 240}, {"requeue": True}),
        (
            {"time": 90, "partition": "gpu", "qos": "long", "name": "mine", "requeue": False, "licenses": "a"},
            "slurm",
            "mine",
            {"slurm_time": 90, "slurm_partition": "gpu", "slurm_qos": "long"},
            {"requeue": False, "licenses": "a"},
        ),
        ({"cluster": "local"}, "local", "medattack", None, None),
        ({"cluster": "debug"}, "debug", "medattack", None, None),
    ],
)
def test_parts_are_one_array_with_the_options_of_sbatch_and_are_queued_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    cluster: str,
    name: str,
    parameters: dict[str, Any] | None,
    more: dict[str, Any] | None,
) -> None:
    executors: list[Executor] = []
    make = lambda **words: (executors.append(Executor(**words)), executors[-1])[1]  # noqa: E731
    monkeypatch.setattr("submitit.AutoExecutor", make)
    parts = [replace(job(tmp_path), options=RunOptions(shard=(k, 2))) for k in range(2)]
    submission = submit(parts, settings)
    assert submission.ids == ("7_0", "7_1")
    (executor,) = executors
    assert "result" not in executor.log  # so that it can be said what was submitted before the jobs are waited for
    assert list(wait(submission, parts)) == ([] if cluster == "slurm" else [1, 1])
    asked = [] if parameters is None else [{"slurm_additional_parameters": more, **parameters}]
    waited = [] if cluster == "slurm" else ["result", "result"]
    begin = [{"folder": tmp_path / WORKERS, "cluster": cluster}, *asked, {"name": name}]
    assert executor.log == [*begin, "batch", *parts, "end", *waited]


def test_the_last_line_of_an_error_is_cut_and_without_one_it_is_its_kind() -> None:
    assert _last_line(RuntimeError("a\n  b \n\n")) == "b"
    assert _last_line(RuntimeError("x" * 301)) == "x" * 300
    assert _last_line(RuntimeError("")) == "RuntimeError"


def test_the_error_of_a_worker_is_in_its_log(tmp_path: Path) -> None:
    def work() -> None:
        with logged(tmp_path):
            print("begun")
            raise InputError("expected a, got b; do c")

    with pytest.raises(InputError):
        work()
    (log,) = (tmp_path / WORKERS).glob(f"*-{os.getpid()}.log")
    assert "begun" in log.read_text()
    assert "expected a, got b; do c" in log.read_text()


@pytest.mark.parametrize(
    ("text", "value"), [("a=1", 1), ("a=0.5", 0.5), ("a=1:30:00", "1:30:00"), ("a=inf", "inf"), ("a=b=c", "b=c")]
)
def test_settings_keep_what_is_no_number(text: str, value: object) -> None:
    assert read_settings([text], "--slurm") == {"a": value}
