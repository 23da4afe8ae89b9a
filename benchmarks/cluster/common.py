"""A small study, run by one process and by a cluster whose machines come and go, and its rows compared bit for bit."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

MEDATTACK = [sys.executable, "-m", "medseg_attack"]
ATTACKS = ["--attack", "fgsm", "--attack", "pgd(steps=20)", "--eps", "4/255"]


@dataclass
class Log:
    """What happened, with seconds since the start, indented as a page of results shows what a program prints."""

    start: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> None:
        line = f"    {time.monotonic() - self.start:6.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)


def medattack(*words: str, environment: dict[str, str] | None = None) -> str:
    """Runs a command to its end and returns what it printed."""
    result = subprocess.run(
        [*MEDATTACK, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MEDATTACK_PROGRESS": "0"} | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}: {result.stderr}")
    return result.stdout + result.stderr


def watched(study: Path) -> str:
    """What `medattack watch` says of the whole study."""
    lines = medattack("watch", str(study), "--once").splitlines()
    return f"medattack watch: {' '.join(itertools.takewhile(str.strip, lines))}"


def prepare(work: Path) -> list[str]:
    """Data, a model and the rows of one process; returns the words of the study."""
    data, model = work / "data", work / "model"
    phantom = "phantom(patients=6, slices=20, side=32)"
    if not (work / "alone").exists():
        medattack("prepare", str(work / "scans"), "--format", phantom, "--out", str(data))
        network = ["--model", "unet_small(channels=(8, 16))", "--epochs", "2"]
        medattack("train", "--data", str(data), *network, "--device", "cpu", "--out", str(model))
        study = words(data, model)
        medattack(*study, "--out", str(work / "alone"))
    return words(data, model)


def words(data: Path, model: Path) -> list[str]:
    return ["attack", "--data", str(data), "--model", str(model), *ATTACKS, "--split", "all", "--device", "cpu"]


def parts(study: Path) -> dict[str, Path]:
    return {str(file.relative_to(study)): file for file in sorted(study.rglob("parts/*.parquet"))}


def compare(alone: Path, together: Path) -> str:
    """A sentence that says that the rows, the configurations and the identity are the same; refuses others."""
    one, other = parts(alone), parts(together)
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    n_rows = 0
    for name, file in one.items():
        rows, others = pd.read_parquet(file), pd.read_parquet(other[name])
        assert rows.equals(others), f"{name} differs"
        n_rows += len(rows)
    for file in [alone / "identity.json", *alone.rglob("config.json")]:
        assert file.read_bytes() == (together / file.relative_to(alone)).read_bytes(), f"{file} differs"
    assert len(list(together.rglob("run.json"))) == len(list(alone.rglob("run.json")))
    same = f"{n_rows} rows in {len(one)} parts are those of the single process, bit for bit"
    return f"{same}; so are the identity of the study and the configurations"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"expected {what} within {seconds:.0f} s"
        time.sleep(0.2)
