"""Work that several processes share: the lines of each, and files of results that a killed process leaves whole."""

import json
from pathlib import Path
from typing import Any


def rows(out: Path) -> list[dict[str, Any]]:
    """The lines that are whole: the last of a file may be half, of a process that writes or that was killed."""
    files = sorted((out / "rows").glob("*.jsonl"))
    return [json.loads(text) for file in files for text in file.read_text().split("\n")[:-1]]


def add(row: dict[str, Any], file: Path) -> None:
    """Appends a line; half a line of a process that was killed goes first."""
    whole = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
    if whole[2]:
        file.write_bytes(whole[0] + whole[1])
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def part(text: str) -> slice:
    """The lines of the part k/N: every N-th, from the k-th on."""
    k, n = map(int, text.split("/"))
    if not 0 <= k < n:
        raise SystemExit(f"expected a part k/N with k from 0 to N - 1, got {text}; write 0/{max(n, 1)}")
    return slice(k, None, n)
