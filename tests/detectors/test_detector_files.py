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
