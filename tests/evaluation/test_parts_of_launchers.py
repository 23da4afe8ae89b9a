"""A part of a study in another process, and tasks of Ray, without either: what each is asked for, and how it fails."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from medseg_attack.errors import InputError
from medseg_attack.evaluation.launchers import jobs, ray_tasks
from medseg_attack.evaluation.launchers.jobs import Job
from medseg_attack.evaluation.studies.opened import RunOptions
from medseg_attack.storage.heartbeats import WORKERS


@pytest.mark.parametrize("model", [None, 1])
def test_a_job_opens_its_study_where_the_command_stood_and_runs_its_part(
    model: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    options = RunOptions(shard=(1, 2))
    opened = SimpleNamespace(models=("a", "b"), device="cpu")

    def opening(study: Any, workspace: Path, device: Any, options: RunOptions, out: Path) -> Any:
        asked.append((study.models, workspace, device, options, out))
        return opened

    def running(study: Any, models: Any) -> Iterator[int]:
        asked.append((study, models))
        yield from (3, 4)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(jobs, "use_trust", lambda *words: asked.append(words))
    monkeypatch.setattr(jobs, "pick_device", lambda name: f"device {name}")
    monkeypatch.setattr(jobs, "open_study", opening)
    monkeypatch.setattr(jobs, "run", running)
    home, out = tmp_path / "home", tmp_path / "out"
    Job({"models": ["a", "b"]}, tmp_path / "there", home, out, "cuda:1", options, model)()
    assert Path.cwd() == tmp_path / "there"
    assert asked == [
        (home, False),
        (["a", "b"], home, "device cuda:1", options, out),
        (opened, None if model is None else ["b"]),
    ]
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"part 1/2 of {out} on cpu, worker ")
    assert others == ["3 cases done", "4 cases done"]


class LostError(Exception):
    """What Ray says of machines that are gone."""


class FailedError(LostError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__("a task\nfailed")
        self.cause = cause


class Ray:
    """Tasks that are done two at a time, in their order, when they are waited for."""

    exceptions = SimpleNamespace(RayTaskError=FailedError, RayError=LostError)

    def __init__(self, *, runs_already: bool, gpus: float = 0) -> None:
        self.runs_already, self.gpus, self.log = runs_already, gpus, list[Any]()

    def is_initialized(self) -> bool:
        return self.runs_already

    def init(self, **words: Any) -> None:
        self.log.append(words)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4, "GPU": self.gpus} if self.gpus else {"CPU": 4}

    def remote(self, **options: Any) -> Any:
        if "moon" in options:
            raise ValueError("no option moon\nfor instance")
        self.log.append(options)
        return lambda work: SimpleNamespace(remote=lambda job: (work, job))

    def wait(self, tasks: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        return tasks[:2], tasks[2:]

    def get(self, task: Any) -> None:
        work, job = task
        work(job)

    def shutdown(self) -> None:
        self.log.append("shutdown")


def parts(out: Path, work: Any = lambda: None, n: int = 3) -> list[Any]:
    return [Mock(Job, out=out, side_effect=work) for _ in range(n)]


@pytest.mark.parametrize(
    ("gpus", "settings", "options"),
    [
        (0, {}, {"num_cpus": 1, "num_gpus": 0, "max_retries": 5}),
        (2.0, {}, {"num_cpus": 1, "num_gpus": 1, "max_retries": 5}),
        (2.0, {"num_gpus": 0.5, "memory": 9}, {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 5, "memory": 9}),
    ],
)
@pytest.mark.parametrize("runs_already", [False, True])
def test_every_part_is_a_task_and_a_ray_that_was_started_for_it_is_stopped(
    gpus: float,
    settings: dict[str, Any],
    options: dict[str, Any],
    runs_already: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = Ray(runs_already=runs_already, gpus=gpus)
    monkeypatch.setattr(ray_tasks, "package", lambda *_: ray)
    tasks = parts(tmp_path, lambda: print("done"))
    assert list(ray_tasks.compute(tasks, settings)) == [2, 1]
    assert all(task.call_count == 1 for task in tasks)
    (log,) = (tmp_path / WORKERS).glob("*.log")
    assert log.read_text() == "done\n" * 3
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False, "configure_logging": False}
    assert ray.log == ([options] if runs_already else [quiet, options, "shutdown"])


def fail(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FailedError(InputError("expected a, got b; do c")), "expected a, got b; do c"),
        (
            FailedError(KeyError("k")),
            r"expected tasks that end well, got 'KeyError\('k'\)'; read the logs in .*workers",
        ),
        (
            LostError("the node is gone\nat ten"),
            "expected machines that stay, got 'the node is gone' after all retries",
        ),
    ],
)
def test_a_task_that_fails_says_why(
    error: BaseException, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Ray(runs_already=False)
    monkeypatch.setattr(ray_tasks, "package", lambda *_: ray)
    with pytest.raises(InputError, match=f"^{sentence}"):
        list(ray_tasks.compute(parts(tmp_path, fail(error)), {}))
    assert ray.log[-1] == "shutdown"


def test_an_option_that_ray_refuses_is_an_error_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "package", lambda *_: Ray(runs_already=True))
    with pytest.raises(InputError, match="expected options of a Ray task, got 'no option moon'; write"):
        list(ray_tasks.compute(parts(tmp_path), {"moon": 1}))
