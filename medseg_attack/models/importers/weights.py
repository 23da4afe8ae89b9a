"""Weights in files of others: safetensors, or torch.save's, of which only tensors and plain values are unpickled."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.errors import InputError, first_line, refusing
from medseg_attack.models.allowed_layers import number_types
from medseg_attack.models.checkpoints import load_tensors
from medseg_attack.storage.archives import require_sound
from medseg_attack.storage.paths import beside, require_file

COMPILED = "_orig_mod."  # torch.compile puts it into the names of weights, at any depth
DEEPEST = 3  # dicts in dicts in a trainer's file
NAMES = 4  # of weights, in a sentence


def read_tensors(path: Path) -> Mapping[str, Any]:
    """The content of a file of weights: tensors by name, or a trainer's dict that holds such.

    Raises:
        InputError: the file is absent or broken, or holds objects that only unpickling could read.
    """
    if not path.exists():
        raise InputError(
            f"expected weights in {path}, a file of safetensors or of torch.save(model.state_dict()), got none; "
            f"name another: {beside(path)}"
        )
    require_file(path, "weights")
    if path.suffix.lower() == ".safetensors":
        return load_tensors(path)
    try:
        require_sound(path)
        with torch.serialization.safe_globals([*number_types(), argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"expected tensors alone in {path}, got objects that would have to be unpickled, which may run anything; "
            "save model.state_dict() with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        raise InputError(f"expected weights in {path}, got '{first_line(error)}'; copy the file again") from error
    if isinstance(content, Mapping):
        return content
    raise InputError(f"expected tensors by name in {path}, got something else; save model.state_dict() of the network")


def load_into(net: nn.Module, path: Path) -> None:
    """Loads the weights of a file into `net`, all of them.

    A prefix that all names share, such as `module.` or `model.`, is dropped where the names then fit.

    Raises:
        InputError: the file is broken, its weights are those of another network, or several of its dicts would fit.
    """
    content = read_tensors(path)
    states = dict(_states(content))
    if not states:
        raise InputError(
            f"expected tensors by name in {path}, got something else; save model.state_dict() of the network"
        )
    expected = {name: tensor.shape for name, tensor in net.state_dict().items() if isinstance(tensor, Tensor)}
    renamed = {place: without_prefix(state, expected) for place, state in states.items()}
    fitting = [place for place, state in renamed.items() if _shapes(state) == expected]
    if len(fitting) > 1:
        raise InputError(
            f"expected one set of weights of this network in {path}, got {len(fitting)}: {', '.join(fitting)}; save "
            f"the one that is meant in a file of its own: torch.save(torch.load(FILE){_subscript(fitting[0])}, OTHER)"
        )
    if not fitting:
        closest = max(renamed.values(), key=lambda state: len(state.keys() & expected.keys()))
        raise InputError(
            f"expected the weights of this network in {path}, got others: {_differences(closest, expected)}; name the "
            "file that was saved from it, or build the network with the options that it was trained with"
        )
    todo = "name the file that was saved from it"
    with refusing(f"the weights of this network in {path}", todo, RuntimeError, words=first_line):
        net.load_state_dict(renamed[fitting[0]], strict=True)


def without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by names without what torch.compile and trainers put before them, if the names are then those expected.

    >>> without_prefix({"module.net.weight": torch.ones(1)}, {"weight": (1,)}).keys() == {"weight"}
    True
    """
    renamed = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    steps = next(iter(renamed)).split(".")
    for n in range(len(steps)):
        prefix = "".join(f"{step}." for step in steps[:n])
        if (
            all(name.startswith(prefix) for name in renamed)
            and {name.removeprefix(prefix) for name in renamed} == expected.keys()
        ):
            return {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
    return {name.removeprefix("module."): tensor for name, tensor in renamed.items()}


def _states(
    content: Mapping[Any, Any], place: str = "", depth: int = DEEPEST
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of tensors in a trainer's file, by the keys that lead to it."""
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield place, dict(content)
    elif depth:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _states(value, f"{place}.{key}".lstrip("."), depth - 1)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _subscript(place: str) -> str:
    return "".join(f"[{key!r}]" for key in place.split("."))


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str:
    """The names that only one side has, and shapes that differ, in words."""
    shapes = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name])}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name]
    ]
    lists = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "other shapes": shapes,
    }
    return "; ".join(f"{kind}: {_shortened(names)}" for kind, names in lists.items() if names)


def _shortened(names: Sequence[str]) -> str:
    """The names, without those in the middle if there are many."""
    if len(names) <= NAMES:
        return ", ".join(names)
    half = NAMES // 2
    return f"{', '.join(names[:half])} ... {', '.join(names[-half:])} ({len(names)})"
