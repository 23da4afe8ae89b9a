"""Which study a folder of results belongs to. If several processes begin one there at once, the first one decides.

Whether a run goes on is decided in `runs.folder`.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError
from medseg_attack.storage.files import is_part, whole
from medseg_attack.storage.heartbeats import clear
from medseg_attack.storage.json_files import claim_json, read_json, require_same_options
from medseg_attack.storage.locks import LOCK
from medseg_attack.storage.paths import require_file

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
    require_new(out, IDENTITY, "study", lambda path: _begins(path, study))
    is_new = claim_json(file, identity)
    if not is_new:
        require_same_options(out, read_json(file), identity)
    try:
        if not (out / STUDY).exists():
            with whole(out / STUDY) as part:
                part.write_text(study, encoding="utf-8")
    except (Exception, SystemExit):
        if is_new:
            file.unlink()
        raise
    return is_new


def require_new(out: Path, first: str, what: str, belongs: Callable[[Path], bool] = lambda path: False) -> None:
    """Refuses a folder that holds other things, unless `first` says whose it is: what a kill leaves is none.

    Args:
        out: an existing folder.
        first: name of the file that is written first.
        what: such a folder holds, in a word.
        belongs: whether another file may stand there before.

    Raises:
        InputError: there is no `first`, and something else.
    """
    if (out / first).exists():
        return
    others = [path.name for path in out.iterdir() if path.name not in (LOCK, first) and not belongs(path)]
    others = [name for name in others if not is_part(name, re.escape(first))]
    if others and not (out / first).exists():  # another process may have written it meanwhile
        raise InputError(
            f"expected {out} to be new or to hold this {what}, got a folder of other things ({others[0]}); "
            "choose another --out"
        )


def _begins(path: Path, study: str) -> bool:
    """Whether a file is study.yaml of this study, which versions before wrote first, or a part of it."""
    if path.name == STUDY:
        return require_file(path).read_text(encoding="utf-8", errors="replace") == study
    return is_part(path.name, re.escape(STUDY))


def withdraw(out: Path, folders: Iterable[Path]) -> None:
    """Removes what was written into a folder that was nobody's: the study and these folders of its models."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    clear(out)
    for name in (STUDY, IDENTITY):
        (out / name).unlink(missing_ok=True)
