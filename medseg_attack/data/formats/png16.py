"""16-bit greyscale PNG slices."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from medseg_attack.data.formats.memory import require_room
from medseg_attack.errors import InputError, refusing
from medseg_attack.storage.paths import require_file

Image.MAX_IMAGE_PIXELS = None  # `require_room` refuses large pictures, with a limit that an option raises


def read_png16(path: Path) -> NDArray[np.uint16]:
    """The pixels, (rows, columns).

    Raises:
        InputError: the file is cut off, is not an image, or is not 16-bit greyscale.
    """
    require_file(path, "a PNG")
    with refusing(f"a whole PNG in {path}", "copy it again", passing=(InputError, MemoryError)):
        try:
            image = Image.open(path)
        except UnidentifiedImageError as error:
            raise InputError(f"expected a PNG in {path}, got a file that is not an image; replace it") from error
        with image:
            require_room(path, (image.height, image.width))
            image.load()
            mode, kind = image.mode, image.format
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
            pixels = np.array(image)
    if kind != "PNG" or not mode.startswith("I"):
        raise InputError(
            f"expected a 16-bit greyscale PNG in {path}, got {kind} of mode {mode}; "
            "export the scan without converting it to 8 bits or to colour"
        )
    if turned != 1:
        raise InputError(f"expected rows from top to bottom in {path}, got EXIF orientation {turned}; remove the tag")
    return pixels.astype(np.uint16)


def write_png16(path: Path, pixels: NDArray[np.uint16]) -> None:
    """Writes (rows, columns) as 16-bit greyscale."""
    Image.fromarray(pixels).save(path, format="PNG")
