"""Pages of results are made by the lines that they show."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))
PAGES = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
PAGE = """# Two blocks

```sh
printf 'a\\n' >> seen
printf '%s' \\
    'one\\two'
```

Between.

<!-- output -->
before
<!-- end -->

```sh
wc -l < seen
```

<!-- output -->
<!-- end -->

After.
"""


def test_a_page_gets_what_the_last_line_of_each_block_prints(tmp_path: Path) -> None:
    outputs = RESULTS["run"](RESULTS["recipe"](PAGE), tmp_path)
    page = RESULTS["with_outputs"](PAGE, outputs, "Commit abc.")
    assert "Between.\n\n<!-- output -->\none\\two\n\nCommit abc.\n<!-- end -->" in page
    assert "<!-- output -->\n1\n\nCommit abc.\n<!-- end -->\n\nAfter." in page
    assert RESULTS["recipe"](page) == RESULTS["recipe"](PAGE)


def test_lines_that_were_done_are_not_run_again_until_one_changes(tmp_path: Path) -> None:
    run, lines = RESULTS["run"], RESULTS["recipe"](PAGE)
    assert run(lines, tmp_path) == run(lines, tmp_path)
    assert (tmp_path / "seen").read_text() == "a\n"
    lines[0][0] = "printf 'b\\n' >> seen"
    assert run(lines, tmp_path)[1].strip() == "2"


def test_a_line_that_fails_ends_it_and_leaves_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected exit code 0, got 3 of: exit 3"):
        RESULTS["run"]([["printf 'a\\n' >> seen", "exit 3"]], tmp_path)
    assert RESULTS["run"]([["printf 'a\\n' >> seen", "cat seen"]], tmp_path) == ["a\n"]


def test_a_page_that_nobody_wrote_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "nothing", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"expected the name of a page in .*, got 'nothing'"):
        RESULTS["main"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_place_for_an_output_follows_a_block_and_is_the_only_one_of_it(page: Path) -> None:
    order = re.findall(r"^```sh$|^<!-- output -->$|^<!-- end -->$", page.read_text(encoding="utf-8"), re.M)
    places = "".join({"```sh": "b", "<!-- output -->": "o", "<!-- end -->": "e"}[mark] for mark in order)
    assert re.fullmatch(r"(b(oe)?)*", places), places


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_short_line_of_a_page_quotes_it(page: Path) -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    (short,) = re.findall(rf"^\| \[{page.stem}\]\(results/{page.name}\) \| (.*) \|$", readme, re.M)
    quoted = set(re.findall(r"\d+\.\d+", short))
    assert quoted <= set(re.findall(r"\d+\.\d+", page.read_text(encoding="utf-8")))
