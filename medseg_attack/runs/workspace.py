"""The workspace, where names without a path are looked up: one folder with `data/`, `models/` and `runs/`."""

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medseg_attack.errors import InputError, close_matches, nearest, plural
from medseg_attack.escaping import shell
from medseg_attack.runs.stored_files import CONFIG_FILE, HEADER_FILE, STUDY_FILE, read_stored_study
from medseg_attack.runs.study import Study
from medseg_attack.storage.files import CARD, is_checkpoint, writing
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import read_json
from medseg_attack.storage.kinds import instead
from medseg_attack.storage.locks import LOCK, is_held
from medseg_attack.storage.paths import real_path

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".safetensors")
NETWORK_FILES = (*WEIGHT_FILES, ".ts", ".jit", ".pt2", ".onnx")


class _Listed(Form):
    """The list of scans in the description of a prepared data set."""

    scans: list[str]


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
        todo = "give the folder of a checkpoint, or finish its training"
        got = instead(Path(label), f"a folder without {CARD}", todo)
        raise InputError(f"expected a trained model in {label}, {got}")
    cards = [path for path in (workspace / "models").glob(f"*/{CARD}") if read_json(path).get("label") == label]
    if not cards and Path(label).suffix.lower() in NETWORK_FILES:
        spec = f"own({label!r})"
        if Path(label).suffix.lower() in WEIGHT_FILES:
            spec = f"own('file.py:factory', weights={label!r})"
        raise InputError(
            f"expected the name of a trained model, its folder or a spec, got the file {label}; write --model "
            f"{shell(spec)}"
        )
    if not cards:
        trained = sorted({str(read_json(p).get("label")) for p in (workspace / "models").glob(f"*/{CARD}")})
        raise InputError(
            f"expected a trained {label!r} in {workspace / 'models'}, got {', '.join(trained) or 'none'}; "
            + "".join(f"did you mean {name}? If not, " for name in close_matches(label, trained)[:1])
            + f"train it with medattack train --model {shell(label)}, or give the folder of a checkpoint"
        )
    return max(cards, key=_age).parent


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, str(path)


@dataclass(frozen=True)
class Item:
    """A folder of the workspace that a command made.

    Attributes:
        kind: name of the folder that it lies in: one of `ITEMS`.
        finished: whether the command that makes it came to its end.
        content: what it holds, in words.
    """

    kind: str
    path: Path
    finished: bool
    content: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def changed(self) -> float:
        """Seconds since 1970 of the newest change, of whatever file in it."""
        return max(state.st_mtime for state in self._states)

    @property
    def size(self) -> int:
        """Bytes of all its files; what a link leads to is not in it."""
        return sum(state.st_size for state in self._states if not stat.S_ISDIR(state.st_mode))

    @cached_property
    def _states(self) -> list[os.stat_result]:
        inner = [] if self.path.is_symlink() else self.path.rglob("*")
        return [path.lstat() for path in (self.path, *inner)]


def _data_set(path: Path) -> tuple[bool, str] | None:
    if not (path / "options.json").is_file():
        return None
    if not (path / "dataset.json").is_file():
        return False, "not finished"
    content = read_json(path / "dataset.json", _Listed)
    return True, plural(len(content["scans"]), "scan")


def _checkpoint(path: Path) -> tuple[bool, str] | None:
    if is_checkpoint(path):
        return True, str(read_json(path / CARD).get("label", ""))
    return (False, "training not finished") if (path / "options.json").is_file() else None


def _results(path: Path) -> tuple[bool, str] | None:
    """A study or several, such as those of `medattack defend`; or certificates, which are one run."""
    begun = [file.parent for file in path.rglob(CONFIG_FILE)]
    studies = list(path.rglob(STUDY_FILE))
    if not begun and not studies:
        return None
    finished = [run for run in begun if (run / HEADER_FILE).is_file()]
    models = sum(len(set(read_stored_study(file.parent)["models"])) for file in studies)
    is_whole = len(finished) == len(begun) > 0 and len({run.parent for run in begun}) >= models
    return is_whole, f"{len(finished)} of {plural(len(begun), 'run')}"


def _baselines(path: Path) -> tuple[bool, str] | None:
    saved = list(path.glob("*/baseline.json"))
    return (True, plural(len(saved), "baseline")) if saved else None


ITEMS: Mapping[
    str, Callable[[Path], tuple[bool, str] | None]
] = {  # by kind: finished and content, if a command made it
    "data": _data_set,
    "models": _checkpoint,
    "runs": _results,
    "certificates": _results,
    "baselines": _baselines,
}


def items(workspace: Path, kind: str) -> list[Item]:
    """The folders of a kind in the workspace, the newest last; what no command made is not among them."""
    result = []
    for path in (workspace / kind).glob("[!.]*"):
        facts = ITEMS[kind](path) if path.is_dir() else None
        if facts is not None:
            result.append(Item(kind, path, *facts))
    return sorted(result, key=lambda item: (item.changed, item.name))


def find_item(workspace: Path, name: str) -> Item:
    """The folder of that name: "acdc", or "data/acdc" where several kinds have one, or its path.

    Raises:
        InputError: there is none, or there are several.
    """
    everything = [item for kind in ITEMS for item in items(workspace, kind)]
    matches = [
        item
        for item in everything
        if name in (item.name, f"{item.kind}/{item.name}") or Path(name).absolute() == item.path.absolute()
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        known = " and ".join(f"{item.kind}/{item.name}" for item in matches)
        raise InputError(f"expected the name of one folder in {workspace}, got {name!r} of {known}; write one of these")
    raise InputError(
        f"expected a data set, model or run in {workspace}, got {name!r}; {nearest(name, [i.name for i in everything])}"
    )


def users(workspace: Path, item: Item) -> list[Item]:
    """The results whose study names a data set or a model."""

    def names(path: Path) -> Iterator[str]:
        for file in path.rglob(STUDY_FILE):
            study = read_stored_study(file.parent)
            yield from (study["data"], *study["models"])

    target = real_path(item.path)
    return [each for each in items(workspace, "runs") if target in {real_path(Path(n)) for n in names(each.path)}]


def remove(item: Item) -> None:
    """Removes a folder of the workspace; of a link the link alone.

    Raises:
        InputError: another process writes to it, or the system refuses.
    """
    if item.path.is_symlink():
        with writing(item.path):
            item.path.unlink()
        return
    if any(is_held(file.parent) for file in item.path.rglob(LOCK)):
        raise InputError(f"expected nobody to write to {item.path}, got a process that does; wait for it, or end it")
    with writing(item.path):
        gone = item.path.with_name(f".{item.name}.{secrets.token_hex(4)}.part")
        item.path.rename(gone)  # at once: a killed process leaves nothing that looks whole
        shutil.rmtree(gone)
