"""The documentation site: it builds without a warning, names all there is, and asks no network for anything."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import medseg_attack
from medseg_attack import registry
from medseg_attack.cli import app
from medseg_attack.cli.ls import KINDS

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    import reference

    return reference


@pytest.mark.parametrize(
    ("page", "kind"), [(page, kind) for page, kind in KINDS.items() if kind in registry.table.KINDS]
)
def test_every_registered_name_is_on_the_page_of_its_kind(page: str, kind: str, reference: ModuleType) -> None:
    anchors = re.findall(r"^##+ .* \{ #(\w+) \}$", reference.kind_page(kind), re.M)
    assert sorted(anchors) == registry.names(kind)
    assert f"reference/{page}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_a_name_has_its_text_its_options_and_its_facts(reference: ModuleType) -> None:
    text = reference.kind_page("attack").partition("{ #square }")[2].partition("\n##")[0]
    entry = registry.find("square", "attack")
    assert entry.summary in text
    assert "square(ball=linf, " in text
    assert "medseg_attack/attacks/blackbox/square.py" in text
    assert "| Andriushchenko et al., arXiv 1912.00049 | queries (scores) | linf or l2 |" in text


def test_the_picture_of_an_attack_stands_in_its_own_section(reference: ModuleType) -> None:
    text = reference.pages({"pgd", "fgsm"})["attacks"]
    sections = dict(re.findall(r"^##+ \w+ \{ #(\w+) \}$(.*?)(?=^##|\Z)", text, re.M | re.S))
    assert {name for name, section in sections.items() if f"](pictures/{name}.png)" in section} == {"pgd", "fgsm"}
    assert text.count("](pictures/") == 2


def test_every_page_is_in_the_navigation() -> None:
    shown = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in ROOT.glob("docs/*.md") if f"docs/{page.name}" not in shown] == []


def test_every_command_and_option_is_in_the_reference(reference: ModuleType) -> None:
    sections = re.split(r"^## medattack (\w+) .*$", reference.commands(), flags=re.M)
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(texts) == list(COMMANDS)
    for name, command in COMMANDS.items():
        words = [word for option in command.params for word in option.opts if word.startswith("--")]
        assert all(f"`{word}`" in texts[name] for word in words)


def test_the_library_is_in_the_reference(reference: ModuleType) -> None:
    assert re.findall(r"heading: ma\.(\w+)", reference.library()) == medseg_attack.__all__


def test_names_of_sections_and_cells_are_text(reference: ModuleType) -> None:
    shown = reference.described(
        "A text.\n\nAttributes:\n    width: a | b,\n        in mm\n\nRaises:\n    InputError: no."
    )
    assert "| `width` | a \\| b, in mm |" in shown
    assert "| `InputError` | no. |" in shown


class Sources(HTMLParser):
    """Addresses that a browser asks for when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses.append(values.get("href") or "")
        self.addresses.append(values.get("src") or "")


@pytest.mark.slow  # half a minute: `make docs` is run where the site is published
def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        sources = Sources()
        sources.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in sources.addresses if each.startswith(("http:", "https:", "//"))], page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet
