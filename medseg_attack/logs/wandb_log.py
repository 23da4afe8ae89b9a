"""Weights & Biases: a run of the project `medattack`, kept offline in the workspace unless WANDB_MODE says more."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.errors import package
from medseg_attack.logs.base import keys
from medseg_attack.report.sheet import Sheet

PROJECT = "medattack"


@dataclass(frozen=True)
class WandbLog:
    """One run, with steps that rise."""

    wandb: Any
    run: Any
    place: str

    def points(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({key: values[name] for name, key in keys(list(values)).items()}, step=step)

    def table(self, sheet: Sheet, frame: pd.DataFrame) -> None:
        rows = [list(row) for row in sheet.rows]
        self.run.log({"table": self.wandb.Table(columns=list(sheet.columns), data=rows)})

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


def start_run(folder: Path, name: str, options: Mapping[str, str]) -> WandbLog:
    """A new run; nothing is sent unless WANDB_MODE is online. Neither code nor the machine is recorded."""
    wandb = package("wandb", "log to", "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # its tables would pass through the home of the user
        os.environ.setdefault(name, str(folder / "wandb"))
    unrecorded = dict.fromkeys(("disable_code", "disable_git", "x_disable_stats", "x_disable_machine_info"), True)
    settings = wandb.Settings(silent=True, console="off", host="-", x_save_requirements=False, **unrecorded)
    mode = os.environ.get("WANDB_MODE", "offline")
    about: dict[str, Any] = {"project": PROJECT, "name": name, "config": dict(options)}
    run = wandb.init(**about, dir=str(folder), mode=mode, settings=settings, reinit="create_new")
    place = f"wandb sync {Path(run.dir).parent}" if mode == "offline" else f"wandb, project {PROJECT}"
    return WandbLog(wandb, run, place)
