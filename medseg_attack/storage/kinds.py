"""Folders that this package writes, told apart by their files: for a command that was given one of another kind."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.storage.files import CARD
from medseg_attack.storage.json_files import read_json

_WORKSPACE = ("data", "models", "runs", "certificates", "detectors", "baselines")
_CERTIFICATE = "certificate_version"  # a key of the configuration of certificates alone


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder.

    Attributes:
        name: with its article, such as "a trained model".
        todo: the command that reads such a folder, in the imperative.
    """

    name: str
    todo: str
    is_one: Callable[[Path], bool]


def is_certificate(folder: Path) -> bool:
    """Whether a folder holds the bounds that `medattack certify` wrote, which lie as the rows of a run do."""
    return _has_key(folder / "config.json", _CERTIFICATE)


def kind_of(folder: Path) -> FolderKind | None:
    """The kind of a folder that a command wrote; None of any other, and of none."""
    return next((kind for kind in KINDS if folder.is_dir() and kind.is_one(folder)), None)


def instead(folder: Path, otherwise: str, todo: str) -> str:
    """The end of a sentence about a folder of another kind than was expected: what it is, and which command reads it.

    Args:
        otherwise: what is there if no command wrote it.
        todo: what to do then.
    """
    kind = kind_of(folder)
    return f"got {otherwise}; {todo}" if kind is None else f"got {kind.name}; {kind.todo}"


def _has(name: str) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).exists()


def _has_key(file: Path, key: str) -> bool:
    with suppress(InputError):
        return file.is_file() and key in read_json(file)
    return False


def _has_run(folder: Path) -> bool:
    return any(folder.glob("**/parts/*.parquet"))


KINDS = (
    FolderKind(
        "certificates",
        "'medattack report' shows them beside runs, 'medattack certify' with the same options prints them again",
        is_certificate,
    ),
    FolderKind("a trained model", "give it as --model to 'medattack attack'", _has(CARD)),
    FolderKind(
        "a denoiser",
        "name it in a model, as in \"guarded('unet', [denoiser(file='FOLDER')])\"",
        _has("denoiser.safetensors"),
    ),
    FolderKind(
        "a model whose training was not finished",
        "run the same 'medattack train' again",
        lambda folder: _has_key(folder / "options.json", "model"),
    ),
    FolderKind(
        "a prepared data set",
        "give it as --data to 'medattack attack'",
        lambda folder: (folder / "dataset.json").is_file() and (folder / "options.json").is_file(),
    ),
    FolderKind(
        "a data set that was not finished",
        "run the command that began it again",
        lambda folder: _has_key(folder / "options.json", "source"),
    ),
    FolderKind(
        "perturbed copies of a run", "give the folder of the run, which 'medattack verify' reads", _has("manifest.json")
    ),
    FolderKind("scans of the phantom", "'medattack prepare' reads them, with --format phantom", _has("phantom.json")),
    FolderKind("a baseline", "give its name as --reference to 'medattack compare'", _has("baseline.json")),
    FolderKind("runs", "'medattack compare' reads them", _has_run),
    FolderKind("a study without a finished part", "run the command that began it again", _has("study.yaml")),
    FolderKind("a study with readers", "'medattack readers' with --score reads it", _has("key.json")),
    FolderKind(
        "a page of 'medattack report'", "open its index.html in a browser, or give the runs", _has("index.html")
    ),
    FolderKind(
        "detectors",
        "give one of its files as --detector to 'medattack screen'",
        lambda folder: any(folder.glob("*.safetensors")),
    ),
    FolderKind(
        "a workspace",
        "give a folder in it, or the workspace as --home",
        lambda folder: any((folder / name).is_dir() for name in _WORKSPACE),
    ),
)  # the first that fits
