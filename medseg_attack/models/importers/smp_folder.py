"""Networks that segmentation-models-pytorch saved."""

from pathlib import Path

from torch import nn

from medseg_attack.errors import InputError, raised, refusing
from medseg_attack.models.importers.weights import load_into
from medseg_attack.models.networks.smp import check_encoder
from medseg_attack.storage.json_files import read_json


def smp_folder(folder: Path) -> nn.Module:
    """The network that segmentation-models-pytorch wrote with `save_pretrained`; nothing is downloaded.

    Raises:
        InputError: the folder has another format, or its weights are broken.
    """
    import segmentation_models_pytorch as library

    options = read_json(folder / "config.json")
    archs = {make.__name__: make for make in library.MODEL_ARCHITECTURES_MAPPING.values()}
    name = options.get("_model_class")
    if not isinstance(name, str) or name not in archs:
        raise InputError(
            f"expected an architecture of segmentation-models-pytorch in {folder / 'config.json'}, got {name!r}; "
            "save it with save_pretrained of release 0.4 or later"
        )
    arguments = {key: value for key, value in options.items() if not key.startswith("_")} | {"encoder_weights": None}
    if "encoder_name" in arguments:
        check_encoder(str(arguments["encoder_name"]))  # timm would ask its hub for a name that is not its own
    with refusing(f"options of {name} in {folder / 'config.json'}", "save it with save_pretrained again", words=raised):
        net: nn.Module = archs[name](**arguments)
    load_into(net, folder / "model.safetensors")
    return net
