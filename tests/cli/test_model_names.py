"""How models are named on the command line: trained ones, surrogates, files of networks; and misspelt attacks."""

import json
import shlex
from pathlib import Path

from helpers.command import medattack


def test_a_surrogate_is_named_as_a_model_is(tmp_path: Path) -> None:
    """The name of a trained model stands for its newest checkpoint in the workspace; a network's file for a spec."""
    workspace, data = tmp_path / "home", tmp_path / "data"
    medattack("prepare", tmp_path / "scans", "--format", "phantom(patients=4, slices=2, side=32)", "--out", data)
    common = "--data", data, "--home", workspace
    training = ("train", *common, "--model", "unet_small", "--epochs", "1", "--out", workspace / "models" / "m")
    assert "is trained already" not in medattack(*training).stderr
    assert "is trained already" in " ".join(medattack(*training).stderr.split())
    assert "is trained already" not in " ".join(medattack(*training, "--seed", "1", code=2).stderr.split())
    words = "attack", *common, "--model", "oracle", "--split", "all", "--eps", "0.1", "--no-checks"
    medattack(*words, "--attack", "transfer(surrogate='unet_small')", "--out", tmp_path / "runs")
    stderr = " ".join(
        medattack(
            *words, "--attack", "transfer(surrogate='unet_smal')", "--out", tmp_path / "other", code=2
        ).stderr.split()
    )
    assert "did you mean unet_small? If not, train it with medattack train --model unet_smal, or" in stderr
    for name, spec in (("net.ts", "own('net.ts')"), ("net.pth", "own('file.py:factory', weights='net.pth')")):
        stderr = " ".join(medattack("attack", *common, "--model", name, code=2).stderr.split())
        assert f'got the file {name}; write --model "{spec}"' in stderr
    spec = "smp(encoder='resnet18')"
    stderr = " ".join(medattack("attack", *common, "--model", spec, code=2).stderr.split())
    command = stderr.partition("train it with ")[2].partition(", or give")[0]
    assert shlex.split(command) == ["medattack", "train", "--model", spec]
    both = ("attack", *common, "--model", "unet_small", "--model", workspace / "models" / "m", "--split", "all")
    plan = json.loads(medattack(*both, "--attack", "fgsm", "--no-control", "--plan", "--json").stdout)
    assert [run["model"] for run in plan["runs"]] == ["unet_small"]
    stderr = " ".join(medattack("attack", *common, "--model", "unet_small", "--attack", "pdg", code=2).stderr.split())
    assert "did you mean pgd? There are" in stderr
