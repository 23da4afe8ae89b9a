"""Trained models on disk: `weights.safetensors`, then `card.json`, which makes the folder a checkpoint.

Weights are never unpickled, and loading never downloads.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, refusing
from medseg_attack.models.networks.blank import BlankParameters
from medseg_attack.models.segmodel import Contains, SegModel
from medseg_attack.models.trust import refuse_untrusted
from medseg_attack.registry import find, parse, parse_call
from medseg_attack.registry.table import Bound
from medseg_attack.runtime import versions
from medseg_attack.storage.files import CARD, is_checkpoint, whole
from medseg_attack.storage.forms import MOST, Count, Form, Share, TaskForm
from medseg_attack.storage.json_files import read_json, write_json
from medseg_attack.storage.paths import require_file
from medseg_attack.types import Image, Task

WEIGHTS = "weights.safetensors"
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original$")  # what torch calls a weight under a constraint


class _TrainedOn(Form):
    """The data set that a model was trained on."""

    name: str = ""
    fingerprint: str = ""
    poison: str = ""


class _Training(Form):
    """The options of a training that are read again."""

    fold: Count = 0
    epochs: Count = 0
    encoder_weights: str | None = None
    defences: list[str] = Field(default_factory=list)


class _Card(Form):
    """The facts that every checkpoint has."""

    task: TaskForm
    label: str
    spec: str
    weights_sha256: str
    dims: Literal[2, 3] = 2
    n_parameters: Count = 0
    training_patients: Count | None = None
    training_scans: list[str] = Field(default_factory=list)
    val_dice: dict[str, Share | None] | None = None
    dataset: _TrainedOn = Field(default_factory=_TrainedOn)
    training: _Training | None = None
    passes: Count = 1
    blocks_gradient: bool = False
    known_by: list[str] = Field(default_factory=list)
    backdoor_knowledge: Literal["", "native", "adaptive"] = ""


class TrainedCard(_Card):
    """The facts that `medattack train` prints of its own checkpoint."""

    training: _Training
    best_epoch: Count
    val_patients: Count
    val_dice: dict[str, Share | None]
    val_mean_dice: Share | None
    robust_by: str = ""
    val_robust_dice: dict[str, Share | None] = Field(default_factory=dict)
    val_mean_robust_dice: Share | None = None
    cost: float = Field(1, ge=0, le=MOST)
    stopped: str = ""
    seconds: float = Field(ge=0, le=MOST)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all stored tensors with their names, types and shapes, in hex: the same on every device."""
    return fingerprint_of(model.state_dict())


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors of a state dict with their names, types and shapes, in hex."""
    state_hash = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        state_hash.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state_hash.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state_hash.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one safetensors file, whole or not at all."""
    # copied: networks that share a tensor between names (DynUNet does) are refused by the library otherwise
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with whole(path) as part:
        part.touch()
        usual = part.stat().st_mode
        save_file(stored, part, metadata)
        part.chmod(usual)  # the library makes it unreadable for others


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU.

    Raises:
        InputError: the file is absent, cut off, or of another format.
    """
    todo = "copy the file again, or train the model again"
    with refusing(f"weights in the safetensors format in {path}", todo, (OSError, SafetensorError)):
        tensors: dict[str, Tensor] = load_file(require_file(path, "weights"))
    return tensors


def save(folder: Path, model: SegModel, card: dict[str, Any]) -> dict[str, Any]:
    """Writes the weights, then the card, and returns the card with the model's own facts added.

    Args:
        card: at least `label` (its name on the command line) and `spec` (the text that the registry builds it from).
    """
    state = model.state_dict()
    full = {
        "task": {"channel_names": [], **model.task.to_json()},
        "input_size": list(model.size) if model.size else None,
        "dims": model.dims,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": versions(),
        **card,
        "weights_sha256": fingerprint_of(state),
    }
    (folder / CARD).unlink(missing_ok=True)
    save_tensors(folder / WEIGHTS, state)
    write_json(folder / CARD, full)
    return full


def load(folder: Path, task: Task | None = None, device: torch.device | str = "cpu") -> SegModel:
    """The trained model of a checkpoint, in eval mode.

    Args:
        task: the task of the data; None: the task that the model was trained for.

    Raises:
        InputError: the folder is no checkpoint, its weights are broken or changed, or the model has other classes.
    """
    card = read_buildable_card(folder)
    trained = _task(folder, card)
    if task is not None and _signature(task) != _signature(trained):
        raise InputError(
            f"checkpoint {folder} was trained for {_in_words(trained)}; the data has {_in_words(task)}; "
            "train on this data, or give the data that it was trained for"
        )
    with BlankParameters():
        model = build_model(str(card["spec"]), trained, pretrained=False)
    state = load_tensors(folder / WEIGHTS)
    if fingerprint_of(state) != card.get("weights_sha256"):
        raise InputError(
            f"expected the weights that {folder / CARD} describes, got others in {folder / WEIGHTS}; "
            "copy the whole folder again, or train the model again"
        )
    todo = f"install the versions in {folder / CARD}, or train the model again"
    with refusing(f"weights of {card['spec']} in {folder / WEIGHTS}", todo, RuntimeError, words=first_line):
        model.load_state_dict(state, strict=True)
    return model.to(device).eval()


def begin_with(model: SegModel, folder: Path) -> None:
    """Copies the weights of a checkpoint whose name and shape `model` has, too.

    A network for other classes keeps its own last layer. Layers that were exchanged for others which contain them get
    the weights of the plain network, if the checkpoint is one; what was added to them keeps its own.

    Raises:
        InputError: the checkpoint has less than half of the model's weights, or the folder is not a checkpoint.
    """
    read_card(folder)
    own, stored = model.state_dict(), load_tensors(folder / WEIGHTS)
    sources = {name: stored.get(name, stored.get(plain)) for name, plain in _plain_names(model).items()}
    fitting = {
        name: tensor for name, tensor in sources.items() if tensor is not None and own[name].shape == tensor.shape
    }
    n_weights, n_fitting = (sum(tensor.numel() for tensor in state.values()) for state in (own, fitting))
    if 2 * n_fitting < n_weights:
        raise InputError(
            f"expected weights in {folder} that fit the model to be trained, got {n_fitting:,} of {n_weights:,}; take "
            "a checkpoint of the same architecture, or of the network within it"
        )
    model.load_state_dict(fitting, strict=False)


def _plain_names(model: SegModel) -> dict[str, str]:
    """The names of all stored tensors, and what they are called in a network without exchanged layers."""
    names = {name: _ORIGINAL.sub(r".\1", name) for name in model.state_dict()}
    exchanged = [(place, layer.contained) for place, layer in model.named_modules() if isinstance(layer, Contains)]
    for place, parts in sorted(exchanged, reverse=True):  # what is deeper first
        for part in parts:
            within = f"{place}.{part}."
            names = {
                own: f"{place}.{plain.removeprefix(within)}" if plain.startswith(within) else plain
                for own, plain in names.items()
            }
    return names


def read_card(folder: Path, form: type[Form] = _Card) -> dict[str, Any]:
    """The card of a checkpoint: how its model is built, what it was trained on, and its scores.

    Args:
        form: the fields that it must have, with their types.

    Raises:
        InputError: the folder is not a checkpoint, or its card lacks what every checkpoint has.
    """
    if not is_checkpoint(folder):
        raise InputError(
            f"expected a checkpoint with {WEIGHTS} and {CARD} in {folder}, got no {CARD}; name its folder, "
            "or finish the training with the same 'medattack train' command"
        )
    return read_json(folder / CARD, form)


def read_buildable_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint whose model may be built.

    Raises:
        InputError: the folder is not a checkpoint, or its card names code that was not trusted, or no network.
    """
    card = read_card(folder)
    file, spec = folder / CARD, str(card["spec"])
    if parse_call(spec, "model")[0] in ("checkpoint", "others"):
        raise InputError(f"expected a network as 'spec' in {file}, got {spec}; copy the whole folder again")
    refuse_untrusted([spec], file)
    return card


def build_model(spec: str, task: Task, *, pretrained: bool = True, seed: int | None = None) -> SegModel:
    """The model of a spec, built so that the caller's random numbers stay as they are.

    Args:
        pretrained: whether weights that the spec names are read; without, all are random.
        seed: of the weights that the model's factory draws; None: they follow the caller's random numbers.
    """
    name, options = parse_call(parse(spec, "model"), "model")
    if not pretrained:
        options = _without_weights(options)
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        model: SegModel = find(name, "model").make(task, **options)
    return model


def require_trainable(model: SegModel, spec: str, image: Image) -> None:
    """Refuses a model whose weights no training can move.

    Args:
        image: one that it can answer, (1, c, *s); random numbers stay as they are.

    Raises:
        InputError: the model has no weights, or its answer has no gradient by any.
    """
    if not any(True for _ in model.parameters()):
        raise InputError(f"expected a model with weights, got {spec}, which has none; choose another model")
    is_black_box, training = model.black_box, model.training
    if not is_black_box:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            is_black_box = not model.eval()(image).requires_grad
        model.train(training)
    if is_black_box:
        raise InputError(
            f"expected a model with a gradient to train, got a black box, {spec}; choose another model, or copy it "
            "by 'medattack extract'"
        )


def _without_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model without its initial weights, nor those of a network that it alters."""
    kept = {field: value for field, value in options.items() if field not in ("encoder_weights", "weights")}
    inner = kept.get("model")
    if isinstance(inner, Bound):
        kept["model"] = Bound(inner.function, tuple(_without_weights(dict(inner.options)).items()))
    return kept


def _task(folder: Path, card: dict[str, Any]) -> Task:
    try:
        return Task.from_json(card["task"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected the field 'task' in {folder / CARD}, got {error}; copy the whole folder again, or train the "
            "model again"
        ) from error


def _signature(task: Task) -> tuple[object, ...]:
    return task.classes, task.exclusive, task.channels, task.channel_names


def _in_words(task: Task) -> str:
    names = f" {task.channel_names}" if task.channel_names else ""
    return f"{task.classes}{' (exclusive)' if task.exclusive else ''} on {task.channels} channel(s){names}"
