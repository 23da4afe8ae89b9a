"""Networks in MONAI's bundles."""

from pathlib import Path
from typing import Any

from torch import nn

from medseg_attack.errors import InputError, raised
from medseg_attack.models.allowed_layers import allowed_layer
from medseg_attack.models.importers.weights import load_into

MONAI = "monai.networks"


def bundle(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a MONAI bundle, and how it is run: `axes`, and `dims` and its sliding `window` if it tells them.

    MONAI's loaders give x first. Transforms are not applied: they are what `prepare --window` and `normalise` say.

    Raises:
        InputError: the configuration has no plain `network_def`, or the weights are broken.
    """
    from monai.bundle import ConfigParser

    found = [folder / "configs" / f"inference.{kind}" for kind in ("json", "yaml", "yml")]
    config = next((path for path in found if path.is_file()), None)
    if config is None:
        raise InputError(
            f"expected a network's folder at {folder}, with SMP's config.json or a MONAI bundle's "
            "configs/inference.json or .yaml, got neither; check the path"
        )
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
    except Exception as error:  # whatever its parsers raise
        raise InputError(f"expected JSON or YAML in {config}, got {raised(error)}; copy the file again") from error
    definition = parser.get("network_def")
    if not isinstance(definition, dict) or "_target_" not in definition:
        raise InputError(
            f"expected a network_def with a _target_ in {config}, got {definition!r}; make the network in a function "
            "of your own: own('file.py:factory', weights=...)"
        )
    net: nn.Module = _made(definition, config)
    weights = [folder / "models" / f"model.{kind}" for kind in ("safetensors", "pt")]
    load_into(net, next((path for path in weights if path.is_file()), weights[-1]))
    window = _window(parser, config)
    sides = len(window.get("window", ()))
    dims = definition.get("spatial_dims") or sides
    if sides not in (0, dims):
        raise InputError(
            f"expected roi_size of {dims} sides in {config}, which its network is of, got {sides}; repair it"
        )
    told = {"axes": "xyz", "window": window, "dims": dims}
    return net, {name: value for name, value in told.items() if value}


def _made(definition: Any, config: Path) -> Any:
    """What a definition describes; MONAI's own parser would run expressions, and anything that can be imported."""
    if isinstance(definition, list):
        return [_made(value, config) for value in definition]
    if isinstance(definition, str) and definition.startswith(("$", "@", "%")):
        raise InputError(
            f"expected a network_def without expressions and references in {config}, got {definition!r}; make the "
            "network in a function of your own: own('file.py:factory', weights=...)"
        )
    if not isinstance(definition, dict):
        return definition
    made = {key: _made(value, config) for key, value in definition.items() if key not in ("_target_", "_desc_")}
    if made.get("pretrained"):
        made["pretrained"] = False  # what it would download is overwritten by the bundle's own weights
    if "_target_" not in definition:
        return made
    name = str(definition["_target_"])
    make = allowed_layer(name if "." in name else f"{MONAI}.nets.{name}", MONAI)
    if make is None:
        raise InputError(
            f"expected a network or layer of {MONAI} in network_def of {config}, got {name}; make the network in a "
            "function of your own: own('file.py:factory', weights=...)"
        )
    try:
        return make(**made)
    except Exception as error:  # whatever the network's constructor raises
        raise InputError(f"expected options of {name} in {config}, got {raised(error)}; repair it") from error


def _window(parser: Any, config: Path) -> dict[str, Any]:
    inferer = parser.get("inferer")
    if not isinstance(inferer, dict) or not str(inferer.get("_target_", "")).endswith("SlidingWindowInferer"):
        return {}

    def plain(name: str, default: Any) -> Any:
        value = inferer.get(name, default)
        refers = isinstance(value, str) and value.startswith("@")
        return parser.get(value[1:]) if refers else value

    size, overlap, mode = plain("roi_size", None), plain("overlap", 0.25), plain("mode", "constant")
    if (
        not isinstance(size, list)
        or not all(type(n) is int and n > 0 for n in size)
        or type(overlap) is bool
        or (not isinstance(overlap, int | float))
    ):
        raise InputError(
            f"expected roi_size and overlap of the inferer in {config} as numbers, got {size!r} and {overlap!r}; "
            "write them there, since a whole scan is another input"
        )
    return {"window": tuple(size), "overlap": float(overlap), "importance": str(mode)}
