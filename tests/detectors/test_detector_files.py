"""Files of detectors, and files that are none."""

from pathlib import Path

import pytest

from medseg_attack.detectors.files import load_detector
from medseg_attack.errors import InputError


@pytest.mark.parametrize("content", [b"", b"a person's own notes\n"])
def test_a_file_that_was_named_by_mistake_is_not_to_be_deleted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(InputError, match=r"got .*; name a file of medattack detect$"):
        load_detector(tmp_path / "notes")


def test_a_file_that_is_not_there_is_said_to_be_a_detector_s(tmp_path: Path) -> None:
    for path, got in (
        (tmp_path / "d.safetensors", "got none; name a file of medattack detect"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=rf"^expected the file of a detector at .*{got}"):
            load_detector(path)
