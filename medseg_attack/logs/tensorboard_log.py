"""TensorBoard: event files in a folder of the workspace, for `tensorboard --logdir`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseg_attack.errors import package
from medseg_attack.logs.base import keys
from medseg_attack.report.sheet import Sheet, markdown


@dataclass(frozen=True)
class TensorBoardLog:
    """Event files of one run."""

    writer: Any
    place: str

    def points(self, values: Mapping[str, float], step: int) -> None:
        for name, key in keys(list(values)).items():
            self.writer.add_scalar(key, values[name], step)

    def table(self, sheet: Sheet, frame: pd.DataFrame) -> None:
        self.writer.add_text("table", markdown(sheet))

    def close(self, *, finished: bool) -> None:
        self.writer.close()


def start_run(folder: Path, name: str, options: Mapping[str, str]) -> TensorBoardLog:
    """Event files in `folder`/tensorboard/`name`; those of an earlier command stay beside them."""
    package("tensorboard", "write event files", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    root = folder / "tensorboard"
    writer: Any = SummaryWriter(str(root / name))
    sheet = Sheet("options", ["option", "value"], [list(pair) for pair in options.items()], left=2)
    writer.add_text("options", markdown(sheet))
    return TensorBoardLog(writer, f"tensorboard --logdir {root}")
