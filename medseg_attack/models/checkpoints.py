"""Trained models on disk: `weights.safetensors`, then `card.json`, which makes the folder a checkpoint.

Weights are never unpickled, and loading never downloads.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg_attack.errors import InputError
from medseg_attack.files import read_json, whole, write_json
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build, parse_call
from medseg_attack.runtime import versions
from medseg_attack.types import Task

WEIGHTS, CARD = "weights.safetensors", "card.json"


def fingerprint(model: nn.Module) -> str:
    """A sha256 of all stored tensors with their names, types and shapes: the same on every device."""
    return fingerprint_of(model.state_dict())


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """The same, of a state dict."""
    whole_state = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole_state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole_state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole_state.hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        InputError: it is absent, cut off, or not such a file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"expected weights in the safetensors format in {path}, got '{error}'; "
            "copy the file again, or train the model again"
        ) from error
    return tensors


def save(folder: Path, model: SegModel, card: dict[str, Any]) -> dict[str, Any]:
    """Writes weights, then card, and returns the card with what the model itself knows.

    Args:
        card: at least `label` (what the command line calls it) and `spec` (what the registry builds it from).
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
    """The trained model in eval mode.

    Args:
        task: of the data that it is wanted for; None: whatever it was trained for.

    Raises:
        InputError: not a checkpoint, broken or changed weights, or trained for other classes.
    """
    card = read_card(folder)
    trained = _task(folder, card)
    if task is not None and _kind(task) != _kind(trained):
        raise InputError(
            f"checkpoint {folder} was trained for {_shown(trained)}; the data has {_shown(task)}; "
            "train on this data, or give the data that it was trained for"
        )
    model = untrained(str(card["spec"]), trained)
    state = load_tensors(folder / WEIGHTS)
    if fingerprint_of(state) != card.get("weights_sha256"):
        raise InputError(
            f"expected the weights that {folder / CARD} describes, got others in {folder / WEIGHTS}; "
            "copy the whole folder again, or train the model again"
        )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"expected weights of {card['spec']} in {folder / WEIGHTS}, got '{str(error).splitlines()[0]}'; "
            f"install the versions in {folder / CARD}, or train the model again"
        ) from error
    return model.to(device).eval()


def begin_with(model: SegModel, folder: Path) -> None:
    """Copies those weights of a checkpoint that `model` has by name and shape.

    A network for other classes keeps its own last layer.

    Raises:
        InputError: less than half of the model is there, or the folder is not a checkpoint.
    """
    read_card(folder)
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in load_tensors(folder / WEIGHTS).items()
        if name in own and own[name].shape == tensor.shape
    }
    whole, found = (sum(tensor.numel() for tensor in state.values()) for state in (own, fitting))
    if 2 * found < whole:
        raise InputError(
            f"expected weights in {folder} that fit the model to be trained, got {found:,} of {whole:,}; take a "
            "checkpoint of the same architecture"
        )
    model.load_state_dict(fitting, strict=False)


def read_card(folder: Path) -> dict[str, Any]:
    """What is known about the checkpoint.

    Raises:
        InputError: the folder is not a checkpoint, or its card lacks what every checkpoint has.
    """
    if not (folder / CARD).is_file():
        raise InputError(
            f"expected a checkpoint with {WEIGHTS} and {CARD} in {folder}, got no {CARD}; check the path, "
            "or finish the training with the same 'medattack train' command"
        )
    card = read_json(folder / CARD)
    absent = [field for field in ("task", "label", "spec", "weights_sha256") if field not in card]
    if absent:
        raise InputError(
            f"expected the field {absent[0]!r} in {folder / CARD}, got none; the card was edited, or is of another "
            "program"
        )
    return card


def untrained(spec: str, task: Task) -> SegModel:
    """The architecture of a spec with random weights; the first ones that it names are not read."""
    name, options = parse_call(spec, "model")
    for initial in ("encoder_weights", "weights"):
        options.pop(initial, None)
    with torch.random.fork_rng(devices=[]):  # a network draws its first weights; the caller's random numbers stay
        model: SegModel = build(name, "model").func(task, **options)
    return model


def _task(folder: Path, card: dict[str, Any]) -> Task:
    try:
        return Task.from_json(card["task"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected the field 'task' in {folder / CARD}, got {error}; the card was edited, or is of another program"
        ) from error


def _kind(task: Task) -> tuple[object, ...]:
    return task.classes, task.exclusive, task.channels, task.channel_names


def _shown(task: Task) -> str:
    named = f" {task.channel_names}" if task.channel_names else ""
    return f"{task.classes}{' (exclusive)' if task.exclusive else ''} on {task.channels} channel(s){named}"
