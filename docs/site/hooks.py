"""Pages of the site: those of the repository under their own paths, so that their links lead on, and the reference."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SHOWN = ("README.md", "docs/*.md", "docs/site/*.css", "benchmarks/**/*.md", "examples/*.ipynb")

sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import reference  # noqa: E402 - it lies beside this file, which mkdocs loads by its path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site."""
    shown = Files([file for file in files if file.src_dir != config.docs_dir])  # those of the theme
    for path in sorted(path for pattern in SHOWN for path in ROOT.glob(pattern)):
        shown.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    drawn = sorted((ROOT / "build" / "pictures").glob("*.png"))  # by pictures.py
    for picture in drawn:
        shown.append(File.generated(config, f"reference/pictures/{picture.name}", abs_src_path=str(picture)))
    for name, text in reference.pages({picture.stem for picture in drawn}).items():
        shown.append(File.generated(config, f"reference/{name}.md", content=text))
    return shown
