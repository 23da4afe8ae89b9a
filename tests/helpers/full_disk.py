"""Runs commands on disks that are too small, and prints what came of each as JSON; `unshare -m` gives it mounts.

Usage: unshare -m python -m helpers.full_disk WORKSPACE [SHARES]

WORKSPACE holds `source`, `data`, `model` and `out`; its folder `disk` is mounted on. SHARES are parts of what a command
writes in all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from medseg_attack.cli import app

PAGE = 4096
COMMANDS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "source", "--format", "folder", "--out", "disk/new"),
    "train": (
        "train",
        "--data",
        "data",
        "--model",
        "unet_small(channels=(4, 8))",
        "--epochs",
        "1",
        "--out",
        "disk/new",
    ),
    "attack": (
        *("attack", "--data", "data", "--model", "model", "--attack", "fgsm", "--attack", "pgd(steps=2)"),
        *("--split", "all", "--save-adversarial", "all", "--out", "disk/new"),
    ),
    "evaluate --csv": (
        *("evaluate", "--data", "data", "--model", "model", "--split", "all"),
        *("--out", "disk/new", "--csv", "disk/scores.csv"),
    ),
    "figure pdf": ("figure", "curves", "out", "--out", "disk/a.pdf"),
    "compare --plot": ("compare", "out", "--csv", "disk/a.csv", "--plot", "disk/a.png"),
}


def main() -> None:
    os.chdir(sys.argv[1])
    shares = [float(word) for word in sys.argv[2:]] or [0.3, 0.95]
    Path("disk").mkdir(exist_ok=True)
    results = []
    for name in COMMANDS:
        mount(2**26)
        code, stderr = run(name)
        assert code == 0, stderr
        whole, state = files(), os.statvfs("disk")
        pages = state.f_blocks - state.f_bfree
        subprocess.run(["umount", "disk"], check=True)
        for share in shares:
            mount(max(1, int(share * pages)) * PAGE)
            code, stderr = run(name)
            left = files()
            subprocess.run(["mount", "-o", "remount,size=64m", "disk"], check=True)
            again, errors = run(name)
            results.append(
                {
                    "command": name,
                    "share": share,
                    "code": code,
                    "stderr": stderr,
                    "is_whole": left == whole,
                    "parts": [file for file in left if file.endswith(".part")],
                    "code_again": again,
                    "is_whole_again": files() == whole or errors,
                }
            )
            subprocess.run(["umount", "disk"], check=True)
    print(json.dumps(results))


def mount(size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", "disk"], check=True)


def run(name: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(COMMANDS[name]), env={"MEDATTACK_PROGRESS": "0"})
    return result.exit_code, result.stderr


def files() -> dict[str, Any]:
    """The files of the disk; lines of those that are tables."""
    return {
        str(path): len(path.read_text().splitlines()) if path.suffix == ".csv" else 0
        for path in sorted(Path("disk").rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()
