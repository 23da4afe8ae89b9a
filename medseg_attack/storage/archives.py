"""Archives that are what their directory says, before a reader takes memory for what it says."""

import zipfile
from pathlib import Path

_PIECE = 1 << 20  # bytes that are read at a time


def require_sound(path: Path) -> None:
    """Passes if every member of a ZIP archive has the size and the checksum of the directory; other files pass.

    torch reserves the size that the directory has for a member, and then looks whether it is there.

    Raises:
        zipfile.BadZipFile: a member is another, or the archive is broken.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            size = 0
            with archive.open(member) as content:  # raises where a checksum is another
                while piece := content.read(_PIECE):
                    size += len(piece)
            if size != member.file_size:
                raise zipfile.BadZipFile(f"{member.filename} has {size} bytes, not {member.file_size}")
