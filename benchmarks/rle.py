"""Run lengths of masks read and written, beside the usual loops over runs and over pixels.

    python benchmarks/rle.py --masks 200

Masks are as those of the UW-Madison data: a few blobs on 266 x 266 to 360 x 310 pixels. Prints a table and JSON; ratios
are of medians of interleaved runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg_attack.data.formats import rle
from medseg_attack.runtime import provenance, versions

SHAPES = ((266, 266), (360, 310), (276, 276), (234, 234))


def blobs(seed: int) -> NDArray[np.bool_]:
    """A random mask with smooth edges, of a tenth of the pixels."""
    draw = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(draw.standard_normal(SHAPES[seed % len(SHAPES)]), 8)
    return np.asarray(field > np.quantile(field, 0.9))


def decode_by_loop(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, a run at a time: the competition's public notebooks."""
    mask = np.zeros(shape[0] * shape[1], dtype=bool)
    words = text.split()
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(shape)


def decode_by_pixels(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, a pixel at a time."""
    mask = [False] * (shape[0] * shape[1])
    words = text.split()
    for start, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel] = True
    return np.array(mask).reshape(shape)


def encode_by_loop(mask: NDArray[np.bool_]) -> str:
    """The runs, a pixel at a time."""
    words: list[str] = []
    before, start = False, 0
    for i, value in enumerate([*mask.ravel().tolist(), False]):
        if value and not before:
            start = i
        if before and not value:
            words += [str(start + 1), str(i - start)]
        before = value
    return " ".join(words)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--masks", type=int, default=200)
    options.add_argument("--repeats", type=int, default=5)
    args = options.parse_args()
    masks = [blobs(seed) for seed in range(args.masks)]
    texts = [rle.encode(mask) for mask in masks]
    work: dict[str, Callable[[], list[Any]]] = {
        "decode": lambda: [rle.decode(text, mask.shape) for text, mask in zip(texts, masks, strict=True)],
        "decode, a run at a time": lambda: [decode_by_loop(t, m.shape) for t, m in zip(texts, masks, strict=True)],
        "decode, a pixel at a time": lambda: [decode_by_pixels(t, m.shape) for t, m in zip(texts, masks, strict=True)],
        "encode": lambda: [rle.encode(mask) for mask in masks],
        "encode, a pixel at a time": lambda: [encode_by_loop(mask) for mask in masks],
    }
    results = {name: run() for name, run in work.items()}
    for name, result in results.items():  # it is the same work
        expected: list[Any] = masks if name.startswith("decode") else texts
        assert all(np.array_equal(one, other) for one, other in zip(result, expected, strict=True)), name
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.repeats):
        for name, run in work.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) / args.masks)
    table: list[dict[str, Any]] = [
        {"work": name, "CPU ms per mask": 1000 * statistics.median(each)} for name, each in times.items()
    ]
    print("| work | CPU ms per mask | times ours |\n| --- | ---: | ---: |")
    for row in table:
        ours = statistics.median(times[str(row["work"]).partition(",")[0]])
        print(f"| {row['work']} | {row['CPU ms per mask']:.3f} | {row['CPU ms per mask'] / 1000 / ours:.1f} |")
    runs = statistics.median(len(text.split()) / 2 for text in texts)
    print(json.dumps({"table": table, "runs per mask": runs, "versions": versions(), **provenance()}))


if __name__ == "__main__":
    main()
