"""Which study a folder of results belongs to: of processes that begin one at the same time, one decides.

Whether a run goes on is decided in `runs.folder`.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError
from medseg_attack.storage.files import claim_json, is_part, read_json, require_file, require_same_options, whole
from medseg_attack.storage.heartbeats import clear
from medseg_attack.storage.locks import LOCK

IDENTITY, STUDY = "identity.json", "study.yaml"


def claim(out: Path, identity: dict[str, Any], study: str) -> bool:
    """Writes the study beside its results, or refuses a folder that is of another one.

    study.yaml can be run again with --config; identity.json is what is compared, since paths may be written otherwise.
    It is written first, and by one process alone.

    Args:
        identity: all that determines the results.
        study: the resolved study in YAML.

    Returns:
        Whether the folder was nobody's before.

    Raises:
        InputError: the folder holds another study, or other things.
    """
    file = out / IDENTITY
    if not file.exists():
        others = [path.name for path in out.iterdir() if not _is_beginning(path, study)]
        if others and not file.exists():  # another process may have written it meanwhile
            raise InputError(
                f"expected {out} to be new or to hold this study, got a folder of other things ({others[0]}); "
                "choose another --out"
            )
    is_new = claim_json(file, identity)
    if not is_new:
        require_same_options(out, read_json(file), identity)
    try:
        if not (out / STUDY).exists():
            with whole(out / STUDY) as part:
                part.write_text(study, encoding="utf-8")
    except Exception:
        if is_new:
            file.unlink()
        raise
    return is_new


def _is_beginning(path: Path, study: str) -> bool:
    """Whether a file is what a process leaves that is killed before it has written identity.json."""
    if path.name == STUDY:  # versions before wrote it first
        return require_file(path).read_text(encoding="utf-8", errors="replace") == study
    return path.name in (LOCK, IDENTITY) or is_part(path.name, r"(?:identity\.json|study\.yaml)")


def withdraw(out: Path, folders: Iterable[Path]) -> None:
    """Removes what was written into a folder that was nobody's: the study and these folders of its models."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    clear(out)
    for name in (STUDY, IDENTITY):
        (out / name).unlink(missing_ok=True)
