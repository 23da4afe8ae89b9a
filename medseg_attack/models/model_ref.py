"""A model as the command line names it: the folder of a checkpoint, or a spec that brings its own weights."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from typing import Literal as TypeLiteral

import torch

from medseg_attack.errors import InputError, NoGradientError, NotFiniteError
from medseg_attack.models import checkpoints
from medseg_attack.models.importers.onnx import external_files
from medseg_attack.models.importers.source_code import Source, source_of
from medseg_attack.models.segmodel import Defended, SegModel
from medseg_attack.models.trust import code_in
from medseg_attack.registry import Spec, find, parse, parse_call, spec
from medseg_attack.registry.grammar import Items, Literal, Node
from medseg_attack.storage.files import file_hash, is_checkpoint
from medseg_attack.storage.json_files import digest
from medseg_attack.storage.paths import real_path
from medseg_attack.types import Task

PATH_OPTIONS = ("net", "weights", "folder")  # any other option may have the name of a folder by accident


@dataclass(frozen=True, eq=False)
class ModelRef:
    """A reference to a model that can be loaded.

    Attributes:
        name: its name in a study: the folder of a checkpoint, or a spec.
        card: facts about it: at least label, weights_sha256, n_parameters and dims.
    """

    name: str
    card: Mapping[str, Any]

    @property
    def weights_hash(self) -> str:
        """A hash that identifies the model in a run: equal for the same weights that are read the same way."""
        return str(self.card["weights_sha256"])

    @property
    def label(self) -> str:
        return str(self.card["label"])

    @property
    def dims(self) -> int:
        """Number of spatial axes of a case: 2 for slices, 3 for scans."""
        return int(self.card.get("dims", 2))

    @property
    def black_box(self) -> bool:
        """Whether the model has no gradients, because it runs outside of torch."""
        return bool(self.card.get("black_box", False))

    @property
    def is_random(self) -> bool:
        """Whether two passes of one image may differ, as far as the model says."""
        return bool(self.card.get("is_random", False))

    @property
    def blocks_gradient(self) -> bool:
        """Whether the model's own gradient is of no use somewhere, where it has a stand-in."""
        return bool(self.card.get("blocks_gradient", False))

    @property
    def prompt(self) -> str:
        """How a promptable model's prompts are drawn from the truth, in words; "" of any other."""
        return str(self.card.get("prompt", ""))

    @property
    def encoder(self) -> str:
        """The part of the network whose answer stands for the features of an image; "" where none is named."""
        return str(self.card.get("encoder", ""))

    @property
    def known_by(self) -> tuple[str, ...]:
        """The names of further attacks that know a layer of the model."""
        return tuple(self.card.get("known_by", ()))

    @property
    def training_scans(self) -> frozenset[str]:
        """The digests of the scans that the model, or one that it is made of, was trained on; none if nobody says."""
        return frozenset(self.card.get("training_scans", ()))

    @property
    def backdoor_knowledge(self) -> TypeLiteral["", "native", "adaptive"]:
        """Whether a backdoor that the model may hold knows how its training removes them; "" if it removes none."""
        known: TypeLiteral["", "native", "adaptive"] = self.card.get("backdoor_knowledge", "")
        return known

    @property
    def base(self) -> str:
        """The folder or spec of the model within, of several the first; "" of a model that is made of none."""
        return next(iter(_members(self.name)), "") if not is_checkpoint(Path(self.name)) else ""

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """A scope in which an error about an answer or a gradient that is none begins with the model's name."""
        try:
            yield
        except (NotFiniteError, NoGradientError) as error:
            raise InputError(f"{self.name}: {error}") from error

    def load(self, task: Task, device: torch.device | str) -> SegModel:
        """The model in eval mode.

        Raises:
            InputError: the model is broken, or has other classes than `task`.
        """
        if is_checkpoint(Path(self.name)):
            return checkpoints.load(Path(self.name), task, device)
        return checkpoints.build_model(self.name, task, seed=0).to(device).eval()


def resolve(name: str, task: Task) -> ModelRef:
    """The model of that name; a model that is a spec is built once, to fill its card.

    Raises:
        InputError: no model has that name, or it is broken.
    """
    folder = Path(name)
    if is_checkpoint(folder):
        card = checkpoints.read_buildable_card(folder)
        return ModelRef(name, card | {"weights_sha256": checkpoint_hash(card)})
    model = checkpoints.build_model(name, task, seed=0)  # the same hash in every process
    defence = {"is_random": model.is_random, "blocks_gradient": model.blocks_gradient, "passes": model.passes}
    card = {
        "label": _label(name),
        "spec": name,
        "dims": model.dims,
        "black_box": model.black_box,
        **(defence if isinstance(model.net, Defended) else {}),
        **({"prompt": model.prompt} if model.prompt else {}),
        **({"encoder": model.encoder} if model.encoder else {}),
        **({"known_by": list(model.known_by)} if model.known_by else {}),
        **({"training_scans": scans} if (scans := _training_scans(name)) else {}),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": digest([checkpoints.fingerprint(model), _spec_with_file_hashes(name)]),
    }
    return ModelRef(name, card)


def checkpoint_hash(card: Mapping[str, Any]) -> str:
    """A hash of all that determines a checkpoint's answers: its weights, and the code that its spec names."""
    weights, text = str(card["weights_sha256"]), str(card["spec"])
    return digest([weights, _spec_with_file_hashes(text)]) if any(code_in(text)) else weights


def files_of(name: str) -> list[Path]:
    """The files and folders that a spec names, and those that they depend on."""
    if is_checkpoint(Path(name)):
        return [Path(name)]
    _, options = parse_call(name, "model")
    if members := _members(name):
        return list(dict.fromkeys(chain.from_iterable(map(files_of, members))))
    named = [path[0] for path in map(_split_path, options, options.values()) if path]
    net = str(options.get("net", ""))
    if Path(net).suffix.lower() == ".onnx":
        return [*named, *external_files(Path(net))]
    source = source_of(net) if ":" in net else Source(())
    known = [real_path(path) for path in named]
    return [*named, *(path for path in (*source.modules, *source.files) if path not in known)]


def _spec_with_file_hashes(name: str) -> dict[str, Any]:
    """A spec with hashes in place of the files that it names: these may be moved, but not changed.

    What a network depends on beyond its own file is listed, too: further modules, files and variables of its code, and
    weights of an ONNX network that lie in other files.
    """
    owner, options = parse_call(name, "model")
    wraps = find(owner).wraps
    fields: dict[str, Any] = {
        field: _option_with_file_hash(field, value) for field, value in options.items() if field != wraps
    }
    if wraps:
        return {"model": owner} | fields | {wraps: list(map(_member_with_file_hashes, _members(name)))}
    return {"model": owner} | fields | _dependencies(str(options.get("net", "")))


def _members(name: str) -> list[str]:
    """The folders and specs of the models that a spec of a model is made of."""
    owner, options = parse_call(name, "model")
    value = options.get(find(owner).wraps) or ()
    return [each if isinstance(each, str) else spec(each) for each in (value if isinstance(value, tuple) else (value,))]


def _training_scans(name: str) -> list[str]:
    """The digests of the scans that the models were trained on of which a model is made, where their cards say it."""
    if is_checkpoint(Path(name)):
        return list(checkpoints.read_card(Path(name)).get("training_scans", ()))
    return sorted({scan for member in _members(name) for scan in _training_scans(member)})


def _member_with_file_hashes(name: str) -> Any:
    if is_checkpoint(Path(name)):
        return checkpoint_hash(checkpoints.read_buildable_card(Path(name)))
    return _spec_with_file_hashes(name)


def _label(name: str) -> str:
    """A spec as tables show it: with the labels of trained models in the place of their folders."""

    def labelled(node: Node) -> Node:
        match node:
            case Items(items):
                return Items(tuple(map(labelled, items)))
            case Literal(str() as folder) if is_checkpoint(Path(folder)):
                return Literal(folder, repr(str(checkpoints.read_card(Path(folder))["label"])))
            case Spec(owner, positional, keywords) if wraps := find(owner).wraps:
                first = (node for field, node in keywords if field == wraps)
                rest = tuple((field, node) for field, node in keywords if field != wraps)
                inner = [labelled(each) for each in (*first, *positional)]
                if find(owner).gathers:
                    inner = [each for node in inner for each in (node.items if isinstance(node, Items) else (node,))]
                return Spec(owner, tuple(inner), rest)
        return node

    tree = parse(name)
    return str(labelled(tree)) if find(tree.name).wraps else name


def _dependencies(net: str) -> dict[str, Any]:
    if Path(net).suffix.lower() == ".onnx":
        files = external_files(Path(net))
        return {"external": [file_hash(file) for file in files]} if files else {}
    if ":" not in net or Path(net).exists():
        return {}
    source = source_of(net)
    own_file = {real_path(Path(net.rpartition(":")[0]))}  # its hash stands in the option
    others = [[path.name, file_hash(path)] for path in (*source.modules, *source.files) if path not in own_file]
    values = {name: os.environ.get(name) for name in source.variables}
    return ({"reads": sorted(others)} if others else {}) | ({"environment": values} if values else {})


def _option_with_file_hash(field: str, value: Any) -> str:
    option = _split_path(field, value)
    if option is None:
        return value if isinstance(value, str) else spec(value)
    path, factory = option
    if path.is_file():
        return file_hash(path) + factory
    # of a folder only the configurations: the fingerprint of the model covers its weights
    configurations = [file for kind in ("*.json", "*.yaml", "*.yml") for file in path.rglob(kind)]
    return digest(sorted([file.relative_to(path).as_posix(), file_hash(file)] for file in configurations))


def _split_path(field: str, value: Any) -> tuple[Path, str] | None:
    """The existing path of an option and the ":factory" behind it ("" if there is none); None if it is no path."""
    if field not in PATH_OPTIONS or not value or not isinstance(value, str):
        return None
    if Path(value).exists():
        return Path(value), ""
    file, colon, factory = value.rpartition(":")
    return (Path(file), colon + factory) if Path(file).is_file() else None
