"""Networks in MONAI's bundles."""

from pathlib import Path
from typing import Any

from torch import nn

from medseg_attack.errors import InputError, raised, refusing
from medseg_attack.models.allowed_layers import allowed_layer
from medseg_attack.models.importers.weights import load_into

MONAI = "monai.networks"
MOST_VOXELS = 100_000  # along a side of a window
ORIENTATIONS = ("Orientation", "Orientationd", "OrientationD", "OrientationDict")  # as MONAI calls it
USUAL = {"sigma_scale": 0.125, "padding_mode": "constant", "cval": 0.0}  # options of windows that cannot be chosen
AXES = {"R": "-x", "L": "x", "A": "-y", "P": "y", "S": "z", "I": "-z"}  # of axial slices, as prepared


def bundle(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a MONAI bundle, and its options: `axes`, and `dims` and its sliding `window` if it has them.

    MONAI's loaders put x first, and an `Orientationd` of the bundle's `preprocessing` says which way axes run. Other
    transforms are not applied: `prepare --window` and `normalise` take their place.

    Raises:
        InputError: the configuration has no plain `network_def`, or the weights are broken.
    """
    from monai.bundle import ConfigParser

    paths = [folder / "configs" / f"inference.{kind}" for kind in ("json", "yaml", "yml")]
    config = next((path for path in paths if path.is_file()), None)
    if config is None:
        raise InputError(
            f"expected a network's folder at {folder}, with SMP's config.json or a MONAI bundle's "
            "configs/inference.json or .yaml, got neither; name the folder that holds one of them"
        )
    parser = ConfigParser()
    with refusing(f"JSON or YAML in {config}", "copy the file again", words=raised):
        parser.read_config(str(config))
    definition = parser.get("network_def")
    if not isinstance(definition, dict) or "_target_" not in definition:
        raise InputError(
            f"expected a network_def with a _target_ in {config}, got {definition!r}; make the network in a function "
            "of your own: own('file.py:factory', weights=...)"
        )
    net: nn.Module = _build(definition, config)
    weights = [folder / "models" / f"model.{kind}" for kind in ("safetensors", "pt")]
    load_into(net, next((path for path in weights if path.is_file()), weights[-1]))
    window = _window(parser, config)
    sides = len(window.get("window", ()))
    dims = definition.get("spatial_dims") or sides
    if sides not in (0, dims):
        raise InputError(
            f"expected roi_size of {dims} sides in {config}, as its network has, got {sides}; write "
            f"roi_size with {dims} sides"
        )
    options = {"axes": _axes(parser) if dims == 3 else "xyz", "window": window, "dims": dims}
    return net, {name: value for name, value in options.items() if value}


def _build(definition: Any, config: Path) -> Any:
    """The network of a definition, built without MONAI's parser, which runs expressions and imports anything."""
    if isinstance(definition, list):
        return [_build(value, config) for value in definition]
    if isinstance(definition, str) and definition.startswith(("$", "@", "%")):
        raise InputError(
            f"expected a network_def without expressions and references in {config}, got {definition!r}; make the "
            "network in a function of your own: own('file.py:factory', weights=...)"
        )
    if not isinstance(definition, dict):
        return definition
    options = {key: _build(value, config) for key, value in definition.items() if key not in ("_target_", "_desc_")}
    if options.get("pretrained"):
        options["pretrained"] = False  # the bundle's own weights replace those that it would download
    if "_target_" not in definition:
        return options
    name = str(definition["_target_"])
    layer = allowed_layer(name if "." in name else f"{MONAI}.nets.{name}", MONAI)
    if layer is None:
        raise InputError(
            f"expected a network or layer of {MONAI} in network_def of {config}, got {name}; make the network in a "
            "function of your own: own('file.py:factory', weights=...)"
        )
    with refusing(f"options of {name} in {config}", "correct them in network_def", words=raised):
        return layer(**options)


def _axes(parser: Any) -> str:
    """The order of axes that the last `Orientationd` turns scans to; "xyz" where there is none.

    >>> from monai.bundle import ConfigParser
    >>> turn = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
    >>> _axes(ConfigParser({"preprocessing": {"_target_": "Compose", "transforms": [turn]}}))
    '-x-yz'
    """
    composed = _referred(parser, parser.get("preprocessing"))
    transforms = _referred(parser, composed.get("transforms")) if isinstance(composed, dict) else composed
    axes = "xyz"
    for one in transforms if isinstance(transforms, list) else []:
        if isinstance(one, dict) and str(one.get("_target_", "")).rpartition(".")[2] in ORIENTATIONS:
            codes = "RAS" if one.get("as_closest_canonical") is True else one.get("axcodes")
            known = [AXES.get(str(code), "") for code in (codes if isinstance(codes, str | list) else ())]
            axes = "".join(known) if sorted(axis[-1:] for axis in known) == ["x", "y", "z"] else axes
    return axes


def _referred(parser: Any, value: Any) -> Any:
    """The value that a reference such as "@roi" names; other values as they are."""
    return parser.get(value[1:]) if isinstance(value, str) and value.startswith("@") else value


def _window(parser: Any, config: Path) -> dict[str, Any]:
    inferer = _referred(parser, parser.get("inferer"))
    if not isinstance(inferer, dict) or not str(inferer.get("_target_", "")).endswith("SlidingWindowInferer"):
        return {}

    for name, usual in USUAL.items():
        value = _referred(parser, inferer.get(name, usual))
        if value != usual:
            raise InputError(
                f"{name}: expected {usual!r} of the inferer in {config}, got {value!r}, which windows here do not "
                "have; take it out, and see with medattack evaluate what that changes"
            )
    options = {"roi_size": None, "overlap": 0.25, "mode": "constant"} | inferer
    size, overlap, mode = (_referred(parser, options[name]) for name in ("roi_size", "overlap", "mode"))
    if (
        not isinstance(size, list)
        or not size
        or not all(type(n) is int and 0 < n <= MOST_VOXELS for n in size)
        or type(overlap) is bool
        or (not isinstance(overlap, int | float))
    ):
        raise InputError(
            f"expected roi_size and overlap of the inferer in {config} as numbers, got {size!r} and {overlap!r}; "
            "write the numbers into that file"
        )
    return {"window": tuple(size), "overlap": float(overlap), "importance": str(mode)}
