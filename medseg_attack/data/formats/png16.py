"""16-bit greyscale PNG slices."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medseg_attack.errors import InputError, absent


def read_png16(path: Path) -> NDArray[np.uint16]:
    """The pixels, (rows, columns).

    Raises:
        InputError: the file is cut off, is not an image, or is not 16-bit greyscale.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, kind = image.mode, image.format
            pixels = np.array(image)
    except UnidentifiedImageError as error:
        raise InputError(f"expected a PNG in {path}, got a file that is not an image; replace it") from error
    except FileNotFoundError as error:
        raise absent("a PNG", path) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"expected a whole PNG in {path}, got '{error}'; copy it again") from error
    if kind != "PNG" or not mode.startswith("I"):
        raise InputError(
            f"expected a 16-bit greyscale PNG in {path}, got {kind} of mode {mode}; "
            "export the scan without converting it to 8 bits or to colour"
        )
    return pixels.astype(np.uint16)


def write_png16(path: Path, pixels: NDArray[np.uint16]) -> None:
    """Writes (rows, columns) as 16-bit greyscale."""
    Image.fromarray(pixels).save(path, format="PNG")
