"""The workspace, where names without a path are looked up: one folder with `data/`, `models/` and `runs/`."""

import os
from pathlib import Path

from medseg_attack.errors import InputError, close_matches
from medseg_attack.runs.study import Study
from medseg_attack.storage.files import CARD, is_checkpoint, read_json

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".safetensors")
NETWORK_FILES = (*WEIGHT_FILES, ".ts", ".jit", ".pt2", ".onnx")


def home(path: Path | None = None) -> Path:
    """The workspace: `path`, else MEDATTACK_HOME, else ./medattack_runs."""
    return path or Path(os.environ.get("MEDATTACK_HOME", "medattack_runs"))


def newest_data(workspace: Path) -> Path:
    """The data set that was prepared last.

    Raises:
        InputError: there is none.
    """
    files = list((workspace / "data").glob("*/dataset.json"))
    if not files:
        raise InputError(
            f"expected a prepared data set in {workspace / 'data'}, got none; run 'medattack prepare', or give --data"
        )
    return max(files, key=_age).parent


def with_newest_data(workspace: Path, study: Study) -> Study:
    """The study, with the data set that was prepared last if it names none.

    Raises:
        InputError: there is none.
    """
    return study if study.data else study.model_copy(update={"data": str(newest_data(workspace))})


def newest_model(workspace: Path, label: str) -> Path:
    """The checkpoint of that label which was trained last, or `label` itself if it is a checkpoint's folder.

    Raises:
        InputError: there is none, or its training did not finish.
    """
    if is_checkpoint(Path(label)):
        return Path(label)
    if Path(label).is_dir():
        got = "a data set" if (Path(label) / "dataset.json").is_file() else f"a folder without {CARD}"
        raise InputError(
            f"expected a trained model in {label}, got {got}; give the folder of a checkpoint, or finish its training"
        )
    cards = [path for path in (workspace / "models").glob(f"*/{CARD}") if read_json(path).get("label") == label]
    if not cards and Path(label).suffix in NETWORK_FILES:
        spec = f"own({label!r})"
        if Path(label).suffix in WEIGHT_FILES:
            spec = f"own('file.py:factory', weights={label!r})"
        raise InputError(
            f'expected the name of a trained model, its folder or a spec, got the file {label}; write --model "{spec}"'
        )
    if not cards:
        trained = sorted({str(read_json(p).get("label")) for p in (workspace / "models").glob(f"*/{CARD}")})
        raise InputError(
            f"expected a trained {label!r} in {workspace / 'models'}, got {', '.join(trained) or 'none'}; "
            + "".join(f"did you mean {name}? If not, " for name in close_matches(label, trained)[:1])
            + f"run 'medattack train --model {label}', or give the folder of a checkpoint"
        )
    return max(cards, key=_age).parent


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, str(path)
