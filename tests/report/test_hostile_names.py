"""Names of models, data, organs, attacks, detectors and trials are text on the page, the card, an entry and its board.

A name may also stand in a path: nothing is written beside the folder that was named.
"""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.pages import write_detection, write_trial
from helpers.runs import dice_of, write_run
from markdown_it import MarkdownIt

NAMES = (
    "<script>alert(1)</script>",
    "</style><b>",
    "a\"b'c",
    "[red]x[/red]",
    "a|b",
    r"\input{x}",
    "Ω é 日本",
    "{{ 7*7 }}",
    "*a* _b_ `c` # d",
    "../../up",
    "![x](http://example.org/x.png)",
    "javascript:alert(1)",
)
ALL = "; ".join(NAMES)
HIDDEN = "right\u202eleft"
TAGS = {"script", "b", "img", "iframe", "object", "link"}


class Reader(HTMLParser):
    """The text of a page as a browser shows it, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.links = "", [], []  # type: str, list[str], list[str]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def write_results(root: Path, name: str, weights: str) -> None:
    """A run and a detector whose every name is that one."""
    flag = {"code": "MA029", "verdict": "note", "title": name, "about": name, "seen": name, "todo": name}
    facts: dict[str, Any] = {"data": name, "organs": [name, HIDDEN], "flags": [flag], "loss": name, "weights": weights}
    write_run(root / "runs", dice_of(0, 2)[:, :, :2], model=name, attack=name, **facts)
    write_detection(root / "detectors", model=name, data=name, detector=name, verdict=name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every file that `report` and `leaderboard` write about these names."""
    root = tmp_path_factory.mktemp("names")
    for n, name in enumerate(NAMES):
        write_results(root / "in" / str(n), name, chr(99 + n))
    write_trial(root / "in" / "trial", f"defended {ALL}", f"twin {ALL}", patients=2)
    out = root / "a" / "b" / "out"
    medattack("report", root / "in", "--card", "--entry", "--out", out)
    medattack("leaderboard", out, "--out", out / "board")
    medattack("report", root / "in", "--out", out / "page", "--worst", 0)
    files = [path for path in root.rglob("*") if path.is_file() and root / "in" not in path.parents]
    assert all(out in path.parents for path in files)
    return files


def of_kind(files: list[Path], pattern: str) -> list[str]:
    texts = [file.read_text(encoding="utf-8") for file in files if file.match(pattern)]
    assert texts
    return texts


@pytest.mark.parametrize("pattern", ["page/index.html", "board/index.html", "out/card-*.html"])
def test_a_name_is_text_in_html(pattern: str, written: list[Path]) -> None:
    readers = [Reader(text) for text in of_kind(written, pattern)]
    own = {"page": {"script", "b"}, "out": {"b"}, "board": set()}[pattern.partition("/")[0]]
    for reader in readers:
        assert set(reader.tags) & TAGS <= own
        assert all(link.startswith("#") for link in reader.links)
        assert HIDDEN not in reader.text
    for name in NAMES:
        assert any(name in reader.text.replace(ALL, "") for reader in readers)
    assert any(f"defended {ALL}" in reader.text for reader in readers)


def test_a_name_is_text_in_markdown(written: list[Path]) -> None:
    texts = of_kind(written, "out/card-*.md")
    readers = [Reader(MarkdownIt("commonmark").enable("table").render(text.partition("-->")[2])) for text in texts]
    for text, reader in zip(texts, readers, strict=True):
        assert not set(reader.tags) & {"script", "b", "img", "a"}
        assert HIDDEN not in text
    for name in NAMES:
        assert sum(f"Robustness card: {name} on {name}" in reader.text for reader in readers) == 1


def test_a_name_is_text_in_an_entry(written: list[Path]) -> None:
    models = [json.loads(text)["model"]["name"] for text in of_kind(written, "*.json")]
    assert sorted(models) == sorted([*NAMES, f"defended {ALL}", f"twin {ALL}"])


def test_a_name_that_is_not_text_of_a_file_system_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for n, data in enumerate(("日本", "Ω", "...", "-rf")):
        write_run(tmp_path / "runs", dice_of(0, 2), data=data, weights=str(n), config={"cases": str(n) * 64})
    medattack("report", tmp_path / "runs", "--entry", "--out", tmp_path / "out")
    folders = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(folders) == 4
    assert not any(name.startswith(("-", ".")) for name in folders)
