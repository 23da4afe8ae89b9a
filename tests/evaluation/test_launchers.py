"""Studies that other processes run: their rows are those of one process, and what cannot be launched is refused."""

import gc
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
from helpers.command import medattack

from medseg_attack.errors import InputError
from medseg_attack.evaluation.launchers.jobs import Job, logged, read_settings
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.storage.heartbeats import WORKERS

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
    require_same(tmp_path / "one", tmp_path / "array")
    again = medattack(*words(home, tmp_path / "array"), "--launcher", "slurm", "--json")
    assert json.loads(again.stdout)["runs"]  # nothing is submitted where nothing is missing
    gc.collect()  # submitit leaves its logs open


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
