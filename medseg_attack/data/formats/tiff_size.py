"""The number of bytes that a TIFF has for its pixels, beside the number that its tags ask for.

Decoders take what there is for rows of the length that the tags say, and black for what is absent.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _EXTRA = 278, 279, 284, 338
_TILE_WIDTH, _TILE_LENGTH, _TILE_BYTES = 322, 323, 325
_YCBCR, _UNSPECIFIED = 6, 0


def require_all_pixels(tags: Mapping[int, Any], path: Path) -> None:
    """Refuses a TIFF whose pixels are not as many as its tags say, and one with channels that have no meaning.

    Raises:
        InputError: it is one.
    """
    if _UNSPECIFIED in _numbers(tags, _EXTRA):
        raise InputError(
            f"expected grey levels or colours in {path}, got {_one(tags, _SAMPLES, 1)} channels of which some have no "
            "meaning (ExtraSamples 0); leave them out"
        )
    width, length = _one(tags, _WIDTH, 0), _one(tags, _LENGTH, 0)
    is_tiled = _TILE_BYTES in tags
    counts = _numbers(tags, _TILE_BYTES if is_tiled else _STRIP_BYTES)
    if not counts or _one(tags, _PHOTOMETRIC, 1) == _YCBCR:  # with fewer colours than pixels
        return
    planes = _one(tags, _SAMPLES, 1) if _one(tags, _PLANAR, 1) == 2 else 1
    part_width, part_length = width, min(_one(tags, _ROWS_PER_STRIP, length), length)
    if is_tiled:
        part_width, part_length = _one(tags, _TILE_WIDTH, 1), _one(tags, _TILE_LENGTH, 1)
    if min(width, length, part_width, part_length) < 1:
        raise InputError(f"expected rows and columns in {path}, got none; write it anew")
    n_parts = planes * ceil(width / part_width) * ceil(length / part_length)
    if len(counts) != n_parts:
        raise InputError(
            f"expected {n_parts} strips or tiles by ImageWidth, ImageLength and RowsPerStrip, got {len(counts)} in "
            f"{path}; write it anew"
        )
    bits = sum(_numbers(tags, _BITS) or (1,)) // planes
    rows = n_parts * part_length if is_tiled else planes * length
    expected, got = rows * ceil(part_width * bits / 8), sum(counts)
    least = expected // max(rows, part_width)  # of a row or a column: less is padding, and so is a last strip in full
    is_padded = got == n_parts * part_length * ceil(part_width * bits / 8)
    if _one(tags, _COMPRESSION, 1) == 1 and abs(got - expected) >= least and not is_padded:
        raise InputError(
            f"expected {expected} bytes of pixels by ImageWidth, ImageLength and BitsPerSample, got {got} in {path}; "
            "write it anew"
        )


def _numbers(tags: Mapping[int, Any], tag: int) -> tuple[int, ...]:
    values = tags.get(tag, ())
    return tuple(map(int, values)) if isinstance(values, tuple) else (int(values),)


def _one(tags: Mapping[int, Any], tag: int, default: int) -> int:
    return (_numbers(tags, tag) or (default,))[0]
