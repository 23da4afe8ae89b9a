"""Valid small inputs of every kind that medattack reads, for `tests/fuzz.py` to damage."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helpers import dicoms, runs, scans, sources
from helpers.nnunet_folder import write_folder

PICTURES = {"tiff": (".tif", ".tif"), "gif": (".gif", ".gif"), "jpeg": (".jpg", ".png"), "bmp": (".bmp", ".bmp")}
PHANTOM = "phantom(patients=3, slices=2, side=16)"
SMALL = ("--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--device", "cpu")
QUICK = ("--eps", "4/255", "--no-control", "--limit", "1", "--device", "cpu")
FACTORY = "from torch import nn\n\n\ndef build():\n    return nn.Conv2d(1, 3, 3, padding=1)\n"


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        folder: the valid input, of which a file is damaged.
        words: the command, which is run in a copy of the folder and may write below `out` there.
        makes: folders that it makes where they are absent or empty.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    makes: tuple[str, ...] = ()


def kinds(root: Path, run: Callable[..., None]) -> list[Kind]:
    """Valid inputs of every kind, written below `root`.

    Args:
        run: runs a command and fails where it fails.
    """
    root.mkdir()
    return [*_scans(root), *_stored(root, run), *_models(root, run)]


def _scans(root: Path) -> list[Kind]:
    result = []

    def add(name: str, write: Callable[[Path], object], *words: str) -> None:
        write(root / name / "in")
        command = ("prepare", "in", "--format", *words, "--out", "out")
        result.append(Kind(name, root / name, command, makes=("in",) if name == "phantom" else ()))

    labels = sources.LABELS | {"folder": "a=255"}
    for name, write in sources.WRITERS.items():
        add(name, write, sources.SPECS[name], *(("--labels", labels[name]) if name in labels else ()))
    for name, (images, masks) in PICTURES.items():
        add(name, lambda folder, ends=(images, masks): _write_pictures(folder, *ends), "folder", "--labels", "a=255")
    add("mask values", lambda folder: _write_pictures(folder, ".png", ".tif"), "folder")
    add("seg alone", lambda folder: _write_labelled(folder, "seg"), "dicom", "--labels", "liver=Liver")
    add("rtstruct alone", lambda folder: _write_labelled(folder, "rtstruct"), "dicom", "--labels", "liver=Liver")
    add("dicom, every label", sources.write_hospital, "dicom", "--missing", "absent")
    add("nnunet raw", _write_raw, "decathlon", "--split-by", "folder")
    add("splits", _write_raw, "decathlon", "--split-by", "in/splits_final.json")
    return result


def _write_pictures(folder: Path, image_ending: str, mask_ending: str) -> None:
    sources.write_pictures(folder)
    for name, ending in (("images", image_ending), ("masks", mask_ending)):
        for file in sorted((folder / name).iterdir()):
            with Image.open(file) as picture:
                picture.load()
            file.unlink()
            picture.save(file.with_suffix(ending))


def _write_labelled(folder: Path, kind: str) -> None:
    """Three patients with a SEG of two segments, or an RTSTRUCT of two regions."""
    for n in range(1, 4):
        images = dicoms.write_series(folder / f"pat{n}", dicoms.values(3, seed=n), patient=f"P{n}")
        if kind == "seg":
            masks = np.concatenate([dicoms.box(3, 3, 7, 2, 6), dicoms.box(3, 8, 10, 2, 6)], axis=-1)
            dicoms.write_seg(folder / f"pat{n}" / "seg.dcm", images, masks, ["Liver", "Spleen"])
        else:
            places = [-50 + z * 2.5 for z in range(3)]
            regions = {name: [dicoms.square(row, 2, 3, z) for z in places] for name, row in (("Liver", 3), ("Gut", 7))}
            dicoms.write_rtstruct(folder / f"pat{n}" / "rs.dcm", regions, patient=f"P{n}")


def _write_raw(folder: Path) -> None:
    """A raw data set of nnU-Net: two channels, regions, test scans and folds."""
    scans.write_channels(folder, together=False)
    shutil.copytree(folder / "imagesTr", folder / "imagesTs")
    shutil.copytree(folder / "labelsTr", folder / "labelsTs")
    for file in [*(folder / "imagesTs").iterdir(), *(folder / "labelsTs").iterdir()]:
        file.rename(file.with_name(file.name.replace("brain_", "test_")))
    described = {
        "name": "Brain",
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3]},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    cases = [f"brain_{n}" for n in range(4)]
    folds = [{"train": [case for case in cases if case != other], "val": [other]} for other in cases]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def _stored(root: Path, run: Callable[..., None]) -> list[Kind]:
    """What medattack itself wrote: prepared data, checkpoints, runs."""
    home, names = root / "stored", root / "names"
    run("prepare", root / "made", "--format", PHANTOM, "--out", home / "data")
    run("train", "--data", home / "data", *SMALL, "--out", home / "model")
    attack = ("attack", "--data", "data", "-m", "model", *QUICK)
    with chdir(home):
        run(*attack, "--out", "run", "--save-adversarial", "all")
    shutil.copytree(home / "data", root / "prepared again" / "out")
    for name, part in (("again", "run"), ("trained again", "model")):
        shutil.copytree(home, root / name)
        shutil.copytree(home / part, root / name / "out")
    runs.write_run(root / "rows" / "new", runs.dice_of(0, 8))
    runs.write_run(root / "rows" / "old", runs.dice_of(1, 8))
    (root / "rows" / "out").mkdir()
    shutil.copytree(home, names)
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 4)).save(names / "region.png")
    fields = {
        "data": "data",
        "models": ["model"],
        "attacks": ["pgd(steps=2)", "fgsm"],
        "losses": ["bce"],
        "eps": ["4/255"],
        "norm": "linf",
        "region": "mask:region.png",
        "split": "test",
        "limit": 1,
        "metrics": [],
        "control": False,
        "seed": 3,
    }
    (names / "study.yaml").write_text(yaml.safe_dump(fields))
    (root / "config").mkdir()
    (root / "config" / "study.yaml").write_text(
        yaml.safe_dump(fields | {"data": str(home / "data"), "models": [str(home / "model")], "region": None})
    )
    gate = ("--reference", "old", "--fail-if", "dice_drop>0.02@sig", "--junit", "out/gate.xml", "--csv", "out/t.csv")
    dicom = root / "dicom copies"
    sources.write_hospital(dicom / "source", patients=3)
    with chdir(dicom):
        run("prepare", "source", "--format", "dicom", "--labels", "liver=Liver", "--out", "data")
        run("train", "--data", "data", *SMALL, "--out", "model")
        run(*attack, "--out", "run", "--save-adversarial", "all")
    anew = ("prepare", str(root / "made"), "--format", PHANTOM, "--out", "out")
    return [
        Kind("stored", home, (*attack, "--out", "out")),
        Kind("again", root / "again", (*attack, "--out", "out", "--save-adversarial", "all")),
        Kind("prepared again", root / "prepared again", anew),
        Kind("trained again", root / "trained again", ("train", "--data", "data", *SMALL, "--out", "out")),
        Kind("evaluate", home, ("evaluate", "-m", "model", "--data", "data", "--out", "out", "--device", "cpu")),
        Kind("doctor", home, ("doctor", "-m", "model", "--data", "data")),
        Kind("verify", home, ("verify", "run")),
        Kind("verify dicom", dicom, ("verify", "run")),
        Kind("copies", dicom, (*attack, "--out", "out", "--save-adversarial", "all")),
        Kind("rows", root / "rows", ("compare", "new", "old", "--deltas", "--csv", "out/t.csv", "--allow-partial")),
        Kind("gate", root / "rows", ("compare", "new", *gate, "--allow-partial")),
        Kind("study", names, ("attack", "-c", "study.yaml", "--out", "out", "--device", "cpu")),
        Kind("config", root / "config", ("attack", "-c", "study.yaml", "--out", "out", "--device", "cpu")),
    ]


def _models(root: Path, run: Callable[..., None]) -> list[Kind]:
    """Networks from elsewhere, each with the data that it is looked at on."""
    slices, volumes = root / "stored" / "data", root / "volumes"
    truth = np.arange(400).reshape(8, 10, 5) % 3
    for n in range(3):
        places = [root / "ct" / folder / f"scan_{n}.nii.gz" for folder in ("imagesTr", "labelsTr")]
        scans.write_pair(*places, mask=truth)
    run("prepare", root / "ct", "--format", "decathlon", "--window", "range", "--out", volumes)
    result = []

    def add(name: str, model: str, data: Path = slices) -> None:
        result.append(Kind(name, root / name, ("doctor", "-m", model, "--data", str(data), "--device", "cpu")))
        (root / name).mkdir()

    add("torchscript", "own('net.ts')")
    torch.jit.script(_network()).save(root / "torchscript" / "net.ts")
    add("onnx", "own('net.onnx')")
    _write_onnx(root / "onnx" / "net.onnx")
    add("state dict", "own('net.py:build', weights='net.pth')")
    torch.save({"epoch": 3, "state_dict": _network().state_dict()}, root / "state dict" / "net.pth")
    add("safetensors", "own('net.py:build', weights='net.safetensors')")
    save_file(_network().state_dict(), root / "safetensors" / "net.safetensors")
    for name in ("state dict", "safetensors"):
        (root / name / "net.py").write_text(FACTORY)
    add("smp", "own('hub', stride=8)")
    _write_smp(root / "smp" / "hub")
    add("bundle", "own('bundle')")
    _write_bundle(root / "bundle" / "bundle")
    add("nnunet results", "nnunet('Dataset999_Toy/nnUNetTrainer__nnUNetPlans__3d_fullres')", volumes)
    write_folder(root / "nnunet results")
    place = root / "nnunet results" / "Dataset999_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "label_1": 1, "label_2": 2}}
    (place / "dataset.json").write_text(json.dumps(described))
    trusted = root / "trusted"
    shutil.copytree(root / "state dict", trusted)
    study = {"data": str(slices), "models": ["own('net.py:build', weights='net.pth')"], "control": False}
    (trusted / "study.yaml").write_text(yaml.safe_dump(study | {"eps": ["4/255"], "losses": ["bce"], "limit": 1}))
    words = ("attack", "-c", "study.yaml", "--home", "home", "--device", "cpu", "--out", "out")
    with chdir(trusted):
        run(*words, "--trust")
    shutil.rmtree(trusted / "out")
    assert (trusted / "home" / "trusted.json").is_file()
    return [*result, Kind("trusted", trusted, words)]


def _network(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(1, classes, 3, padding=1)


def _write_onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3, "h", "w"])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 1, 1, 1], [1.0, -1.0, 0.5])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "net", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def _write_smp(folder: Path) -> None:
    import segmentation_models_pytorch as smp

    options = {"encoder_depth": 3, "decoder_channels": (4, 4, 4), "classes": 3, "in_channels": 1}
    smp.Unet("mobilenet_v2", encoder_weights=None, **options).save_pretrained(folder)


def _write_bundle(folder: Path) -> None:
    from monai.networks.nets.unet import UNet

    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    definition = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": [4, 8]}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8], "overlap": 0.5, "mode": "gaussian"}
    content = {"network_def": definition | {"strides": [2]}, "inferer": inferer}
    (folder / "configs" / "inference.json").write_text(json.dumps(content))
    save_file(UNet(2, 1, 3, (4, 8), (2,)).state_dict(), folder / "models" / "model.safetensors")
