"""A picture of every attack for the reference: a slice of the phantom, its change, and what the model makes of it.

    python docs/site/pictures.py    # into build/pictures; those that are there stay

Each attack runs with its own budget on one slice of synthetic scans, against a network that is trained here
in a minute. `make docs` calls this before it builds the site.
"""

from pathlib import Path

from typer.testing import CliRunner

import medseg_attack as ma
from medseg_attack.cli import app
from medseg_attack.registry.declared import declarations

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "build" / "pictures"
WORK = PICTURES / "work"
SPECS = {  # where an attack's own options do not fit the phantom, or take minutes
    "advgan": "advgan(steps=100)",
    "fgsm_wang2024": "fgsm_wang2024(channels=1)",
    "fsra": "fsra(steps=100)",
    "inpaint": "inpaint(steps=300)",
    "latent_edit": "latent_edit(steps=300)",
    "transfer": f"transfer(surrogate='{WORK / 'surrogate'}')",
}
NOT_DRAWN = ("replay",)  # shows the images of another attack
SIZE = "phantom(patients=10, slices=4, side=64)"


def medattack(*words: object) -> None:
    """Runs a command.

    Raises:
        SystemExit: it failed; what it printed is shown.
    """
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exit_code:
        raise SystemExit(f"{' '.join(map(str, words))}\n{result.output}\n{result.exception!r}")


def main() -> None:
    """Draws the pictures that are not there."""
    names = [each.name for each in declarations("attack") if each.family != "controls" and each.name not in NOT_DRAWN]
    missing = [name for name in names if not (PICTURES / f"{name}.png").exists()]
    if not missing:
        return
    if not (WORK / "data" / "dataset.json").exists():
        medattack("prepare", WORK / "scans", "--format", SIZE, "--out", WORK / "data")
    for seed, model in enumerate(("model", "surrogate")):
        if not (WORK / model / "card.json").exists():
            how = ("--model", "unet_small", "--lr", "3e-3", "--epochs", 40, "--seed", seed, "--no-progress")
            medattack("train", "--data", WORK / "data", *how, "--out", WORK / model)
    for name in missing:
        run = WORK / "runs" / name
        how = ("--attack", SPECS.get(name, name), "--limit", 1, "--no-control", "--no-checks", "--no-progress")
        medattack("attack", "--data", WORK / "data", "--model", WORK / "model", *how, "--out", run)
        scan = ma.read_runs(run, allow_partial=True)["volume"].iloc[0]
        picture = ("--scan", scan, "--allow-partial", "--width", 180, "--out", PICTURES / f"{name}.png")
        medattack("figure", "gallery", run, *picture)
        print(f"{name}: {PICTURES / f'{name}.png'}", flush=True)


if __name__ == "__main__":
    main()
