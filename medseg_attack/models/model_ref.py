"""A model as the command line names it: the folder of a checkpoint, or a spec that brings its own weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg_attack.errors import InputError, NotFiniteError
from medseg_attack.files import digest
from medseg_attack.models import checkpoints
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build, parse_call, spec
from medseg_attack.types import Task

PATHS = ("net", "weights", "folder")  # options of models; other texts may happen to be the name of a folder, too


@dataclass(frozen=True, eq=False)
class ModelRef:
    """A model that can be loaded.

    Attributes:
        name: what names it in a study: a folder or a spec.
        card: what is known about it: at least label, weights_sha256, n_parameters and dims.
    """

    name: str
    card: Mapping[str, Any]

    @property
    def weights(self) -> str:
        """What stands for it in the identity of a run: the same weights, read the same way."""
        return str(self.card["weights_sha256"])

    @property
    def label(self) -> str:
        return str(self.card["label"])

    @property
    def dims(self) -> int:
        """2: its cases are slices; 3: scans."""
        return int(self.card.get("dims", 2))

    @property
    def black_box(self) -> bool:
        """Whether it has no gradients, because it runs outside of torch."""
        return bool(self.card.get("black_box", False))

    @contextmanager
    def named(self) -> Iterator[None]:
        """A scope in which it is told by name that its answer is not finite."""
        try:
            yield
        except NotFiniteError as error:
            raise InputError(f"{self.name}: {error}") from error

    def load(self, task: Task, device: torch.device | str) -> SegModel:
        """The model in eval mode.

        Raises:
            InputError: it is broken, or of other classes than `task`.
        """
        if (Path(self.name) / checkpoints.CARD).is_file():
            return checkpoints.load(Path(self.name), task, device)
        return _built(self.name, task).to(device).eval()


def resolve(name: str, task: Task) -> ModelRef:
    """The model of that name; a spec is built once, to see what it is.

    Raises:
        InputError: there is none, or it is broken.
    """
    folder = Path(name)
    if (folder / checkpoints.CARD).is_file():
        return ModelRef(name, checkpoints.read_card(folder))
    model = _built(name, task)
    card = {
        "label": name,
        "spec": name,
        "dims": model.dims,
        "black_box": model.black_box,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": digest([checkpoints.fingerprint(model), _fingerprint_parts(name)]),
    }
    return ModelRef(name, card)


def _built(name: str, task: Task) -> SegModel:
    """Factories may draw weights: always the same ones, and nobody else's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: SegModel = build(name, "model")(task)
    return model


def files_of(name: str) -> list[Path]:
    """The files and folders that a spec names."""
    _, options = parse_call(name, "model")
    return [found[0] for found in map(_place, options, options.values()) if found]


def _fingerprint_parts(name: str) -> dict[str, Any]:
    """A spec with the files that it names replaced by what is in them, so that it may be moved but not changed."""
    owner, options = parse_call(name, "model")
    return {"model": owner} | {field: _content(field, value) for field, value in options.items()}


def _content(field: str, value: Any) -> str:
    found = _place(field, value)
    if found is None:
        return value if isinstance(value, str) else spec(value)
    path, rest = found
    if path.is_file():
        return checkpoints.sha256_of(path) + rest
    # what stands beside the weights, which the fingerprint covers
    described = [file for kind in ("*.json", "*.yaml", "*.yml") for file in path.rglob(kind)]
    return digest(sorted([file.relative_to(path).as_posix(), checkpoints.sha256_of(file)] for file in described))


def _place(field: str, value: Any) -> tuple[Path, str] | None:
    """Where an option that is a path leads, and what follows it: the ':factory' of a Python file."""
    if field not in PATHS or not value or not isinstance(value, str):
        return None
    if Path(value).exists():
        return Path(value), ""
    file, colon, factory = value.rpartition(":")
    return (Path(file), colon + factory) if Path(file).is_file() else None
