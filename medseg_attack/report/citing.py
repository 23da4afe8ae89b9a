"""BibTeX of what runs used: their data sets, attacks, objectives, models and defences. No torch in here."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from medseg_attack import __version__, registry
from medseg_attack.errors import InputError
from medseg_attack.registry.grammar import parse
from medseg_attack.registry.table import entries
from medseg_attack.runs.reading import find_runs
from medseg_attack.runs.stored_files import STUDY_FILE, read_header, read_stored_study
from medseg_attack.runs.stored_specs import attack_spec
from medseg_attack.storage.files import CARD, is_checkpoint
from medseg_attack.storage.forms import Form
from medseg_attack.storage.json_files import read_json

REFERENCES = Path(__file__).with_name("references.bib")
_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")
_KEY = re.compile(r"@\w+\{([^,]+),")
_NAMES = re.compile(r",?\s*keywords = \{([^}]*)\}")
_EPRINT = re.compile(r"eprint = \{([^}]+)\}")


class _Trained(Form):
    """The options of a training that name what is cited."""

    defences: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """One entry of a bibliography.

    Attributes:
        names: registered names that the entry is to be cited for.
        eprint: its arXiv number; "" of one without.
    """

    key: str
    text: str
    names: tuple[str, ...] = ()
    eprint: str = ""


def references() -> list[Reference]:
    """The entries that are kept with their titles; other papers are cited by their arXiv number."""
    texts = re.split(r"\n(?=@)", REFERENCES.read_text(encoding="utf-8").strip())
    return [_reference(text.strip()) for text in texts]


def _reference(text: str) -> Reference:
    names, eprint, key = _NAMES.search(text), _EPRINT.search(text), _KEY.match(text)
    assert key is not None
    known = tuple(name.strip() for name in names[1].split(",")) if names else ()
    return Reference(key[1], _NAMES.sub("", text), known, eprint[1] if eprint else "")


def bibliography(runs: Sequence[Path]) -> tuple[str, list[str]]:
    """The BibTeX entries of runs, and the data sets and models for which no reference is known.

    Raises:
        InputError: there is no run.
    """
    names = list(dict.fromkeys(_names(runs)))
    known = [_TOOL, *references()]
    chosen = [_TOOL]
    uncited = []
    for name in names:
        of_name = [reference for reference in known if name in reference.names] + list(_papers(name, known))
        chosen += of_name
        if not of_name and (name not in entries or entries[name].kind in ("dataset", "model")):
            uncited.append(name)
    return "\n\n".join(dict.fromkeys(reference.text for reference in chosen)), uncited


def _names(runs: Sequence[Path]) -> Iterator[str]:
    """The registered names that runs were made of: data set, models, attacks and what is in their specs."""
    for run in dict.fromkeys(find_runs(runs)):
        header = read_header(run)
        # as it was typed: what is stored as pgd(steps=1, ...) is fgsm
        yield from (spec.name for spec in attack_spec(str(header["attack"])).walk())
        yield from _in_spec(str(header.get("loss", "")))
        study = run.parent.parent
        if not (study / STUDY_FILE).is_file():
            continue
        fields = read_stored_study(study)
        yield from _of_data(Path(fields["data"]))
        for model in fields["models"]:
            yield from _of_model(model)


def _of_data(folder: Path) -> Iterator[str]:
    """The format of a prepared data set; the folder itself if it is gone."""
    if (folder / "options.json").is_file():
        yield from _in_spec(str(read_json(folder / "options.json").get("format", "")))
    else:
        yield str(folder)


def _of_model(name: str) -> Iterator[str]:
    """The names in a model's spec, and those of its training defence; the folder itself if it is gone."""
    if is_checkpoint(Path(name)):
        yield from _in_spec(str(read_json(Path(name) / CARD).get("spec", "")))
        options = Path(name) / "options.json"
        for text in read_json(options, _Trained).get("defences", ()) if options.is_file() else ():
            yield from _in_spec(text)
    else:
        yield from list(_in_spec(name)) or [name]


def _in_spec(text: str) -> Iterator[str]:
    """The names in a spec; none in any other text."""
    with suppress(InputError):
        yield from (spec.name for spec in parse(text).walk())


def _papers(name: str, known: Iterable[Reference]) -> Iterator[Reference]:
    """The papers that a registered name says it is from."""
    registry.names("attack")  # loads what is registered
    entry = entries.get(name)
    if entry is None:
        return
    by_number = {reference.eprint: reference for reference in known if reference.eprint}
    for number in dict.fromkeys(_ARXIV.findall(f"{entry.paper} {entry.summary}") or _ARXIV.findall(entry.doc)[:1]):
        yield by_number.get(number) or _by_number(number, name)


def _by_number(number: str, name: str) -> Reference:
    fields = f"eprint = {{{number}}},\n  archiveprefix = {{arXiv}},\n  year = {{20{number[:2]}}}"
    url = f"url = {{https://arxiv.org/abs/{number}}}"
    title = f"title = {{arXiv:{number}}}"
    note = f"note = {{{name.replace('_', chr(92) + '_')} in medattack; take author and title from the page}}"
    return Reference(f"arxiv{number}", f"@misc{{arxiv{number},\n  {title},\n  {fields},\n  {url},\n  {note}\n}}")


_TOOL = Reference(
    "medattack",
    "@software{medattack,\n  author = {{medattack maintainers}},\n"
    "  title = {medattack: how far a perturbation that nobody can see moves a medical segmentation model},\n"
    f"  version = {{{__version__}}},\n  year = {{2026}}\n}}",
    names=("phantom",),
)
