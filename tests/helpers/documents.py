"""What pages hold: fenced blocks, lines of a shell, and the sections that these stand in."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "bash", "console")


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fenced(text: str, *languages: str) -> list[str]:
    """Fenced blocks in one of the languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    return [block for language, block in blocks if language in languages]


def lines_of_shell(text: str) -> list[str]:
    """Every line in the shell blocks of a text; one that is continued is one line, and one of comments is none."""
    lines = "\n".join(fenced(text, *SHELLS)).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def sections(page: str) -> dict[str, str]:
    """The text below each heading of a page, by heading; headings inside of blocks are none."""
    texts: dict[str, str] = {}
    heading, is_code = "", False
    for line in read_page(page).splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:
            heading = line.strip("# \n")
        texts[heading] = texts.get(heading, "") + line
    return texts
