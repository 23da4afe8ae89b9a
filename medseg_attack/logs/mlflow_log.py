"""MLflow: a run in the server that MLFLOW_TRACKING_URI names, else in a database file of the workspace."""

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.errors import package, refusing
from medseg_attack.logs.base import keys
from medseg_attack.report.sheet import Sheet, csv_text, markdown

EXPERIMENT = "medattack"
LONGEST = 6000  # characters that MLflow keeps of a parameter


def _reaching(uri: str) -> AbstractContextManager[None]:
    """A scope in which a server that does not answer is an error in a sentence; MLflow raises many types."""
    return refusing(
        f"MLflow at {uri}", "start its server, or correct MLFLOW_TRACKING_URI; then run the same command again"
    )


@dataclass(frozen=True)
class MlflowLog:
    """One run of the experiment `EXPERIMENT`."""

    client: Any
    run_id: str
    uri: str

    @property
    def place(self) -> str:
        return f"MLflow, experiment {EXPERIMENT}: {self.uri}"

    def points(self, values: Mapping[str, float], step: int) -> None:
        with _reaching(self.uri):
            for name, key in keys(list(values)).items():
                self.client.log_metric(self.run_id, key, values[name], step=step)

    def table(self, sheet: Sheet, frame: pd.DataFrame) -> None:
        with _reaching(self.uri):
            self.client.log_text(self.run_id, markdown(sheet), "table.md")
            self.client.log_text(self.run_id, csv_text(frame), "table.csv")

    def close(self, *, finished: bool) -> None:
        with _reaching(self.uri):
            self.client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


def start_run(folder: Path, name: str, options: Mapping[str, str]) -> MlflowLog:
    """A new run. The client is called directly: it notes no user, no host and no code, as `mlflow.start_run` does."""
    mlflow = package("mlflow", "log to", "mlflow")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI", ""), None
    if not uri:
        folder.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{folder.absolute() / 'mlflow.db'}", (folder / "mlflow").absolute().as_uri()
    with _reaching(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, artifacts)
        run_id = client.create_run(number, run_name=name).info.run_id
        for option, key in keys(list(options)).items():
            client.log_param(run_id, key, options[option][:LONGEST])
    return MlflowLog(client, run_id, uri)
