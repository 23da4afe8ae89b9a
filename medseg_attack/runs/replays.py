"""Stored images of earlier runs as a study of their own, so that they can be scored by another model."""

from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import STUDY_FILE, read_config, read_stored_study
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.paths import real_path


def replay_fields(images: Path) -> dict[str, Any]:
    """The fields of a study that replays all stored images in a folder, on the cases that they were made from.

    The choice of cases (split, fold and limit) is that of the first run; it is left out where the run's study is gone.

    Raises:
        InputError: the folder holds no run with stored images.
    """
    runs = [real_path(run) for run in find_runs([images]) if (run / "images").is_dir()]
    if not runs:
        raise InputError(f"expected stored images in {images}, got none; run the attack with --save-adversarial all")
    results = runs[0].parent.parent
    content = read_stored_study(results) if (results / STUDY_FILE).exists() else {}
    choice = {field: content[field] for field in ("split", "fold", "limit") if field in content}
    return {"attacks": [replay(run) for run in runs]} | choice


def replay(run: Path) -> str:
    """The spec of the attack that returns the run's images, held to the run's configuration by its hash."""
    return f"replay(run={str(run)!r}, content={digest(read_config(run))[:12]!r})"
