"""How much memory a file may ask for, which is looked at before any is allocated: small files can claim terabytes."""

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.storage.paths import require_file

MAX_GB = "MEDATTACK_MAX_GB"  # environment variable
USUAL_GB = 6.0  # a CT of 1,500 slices takes half of it
_BYTES = 8  # a value takes as many while windows and percentiles are computed
_GB = 10**9
_chosen: ContextVar[float | None] = ContextVar("gb", default=None)


@contextmanager
def memory_limit(gb: float | None) -> Iterator[None]:
    """A scope in which one scan may take so many GB; None: MEDATTACK_MAX_GB, or 6."""
    token = _chosen.set(gb)
    try:
        yield
    finally:
        _chosen.reset(token)


def limit_gb() -> float:
    """The GB that one scan may take.

    Raises:
        InputError: the environment variable is no number.
    """
    if (gb := _chosen.get()) is not None:
        return gb
    text = os.environ.get(MAX_GB) or str(USUAL_GB)
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"expected a number of GB in {MAX_GB}, got {text!r}; write for instance 12") from error


def require_room(path: Path, shape: Sequence[int]) -> None:
    """Refuses values of that shape, as the header of `path` claims them, if they take more than the limit.

    Raises:
        InputError: they do.
    """
    _require(path, math.prod(int(n) for n in shape) * _BYTES, f"{' x '.join(f'{int(n):,}' for n in shape)} values")


def inflated(compressed: bytes, path: Path) -> bytes:
    """The content of a raw deflate stream, such as the data set of a deflated DICOM file.

    Raises:
        InputError: it takes more than the limit.
        zlib.error: it is broken.
    """
    most = int(limit_gb() * _GB)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(compressed, most)
    if stream.unconsumed_tail:
        _require(path, most + 1, "a deflated file")
    return content


@contextmanager
def gunzipped(path: Path) -> Iterator[io.BufferedIOBase]:
    """A gzip file's content as a stream; what is not read in the block is read at its end, to meet the checksum.

    Raises:
        InputError: the rest takes more than the limit.
        OSError, EOFError, zlib.error: it is broken, or the checksum is another one.
    """
    with gzip.open(require_file(path)) as stream:
        yield stream
        most = stream.tell() + limit_gb() * _GB
        while stream.read(1 << 20):
            if stream.tell() > most:
                _require(path, stream.tell(), "a gzip file")


def _require(path: Path, n_bytes: int, content: str) -> None:
    limit = limit_gb()
    if n_bytes > limit * _GB:
        raise InputError(
            f"expected a scan that takes at most {limit:g} GB of memory, got {content} that take {n_bytes / _GB:,.1f} "
            f"GB in {path}; leave it out, or allow more with --max-gb or {MAX_GB}"
        )
