"""Attacked scans of a network that needs no training: runs whose data and model can be opened again."""

from pathlib import Path

from helpers.bright import write_bright
from helpers.command import medattack


def write_attacked(root: Path, *words: object, dims: int = 2, attacks: tuple[str, ...] = ("fgsm",)) -> Path:
    """The folder of a study on three patients in HU, at budgets of 4 and 40 of 255.

    Args:
        words: further options of `medattack attack`.
    """
    write_bright(root / "scans", channel="CT")
    medattack("prepare", root / "scans", "--format", "decathlon", "--test", "1", "--out", root / "data")
    model = f"own({str(root / 'scans' / 'nets.py') + ':Net'!r}, dims={dims})"
    names = [word for attack in attacks for word in ("--attack", attack)]
    options = ["--loss", "bce", "--eps", "4/255", "--eps", "40/255", "--no-checks", "--trust", "--home", root / "home"]
    medattack("attack", "--data", root / "data", "--model", model, *names, *options, *words, "--out", root / "runs")
    return root / "runs"
