"""Odd values at every place of every stored file: refused by the file's name, or no command stumbles over them."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import medattack
from helpers.pages import detection_row, write_detection, write_trial
from helpers.runs import dice_of, edit, write_run
from typer.testing import CliRunner

from medseg_attack.cli import app
from medseg_attack.cli.audit import _print
from medseg_attack.cli.train import _show
from medseg_attack.data.prepared.reading import _Description, _Options, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.knowledge import adaptive_to
from medseg_attack.gate.baselines import _Record
from medseg_attack.models.checkpoints import TrainedCard, _Card
from medseg_attack.models.model_ref import resolve
from medseg_attack.registry import build
from medseg_attack.report.card.content import cards, subjects
from medseg_attack.report.citing import _Trained
from medseg_attack.report.leaderboard.entries import Entry
from medseg_attack.report.page.content import tables
from medseg_attack.report.page.sections import Results, results
from medseg_attack.report.progress.state import read_state
from medseg_attack.report.progress.view import run_sheet, worker_sheet
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.stored_files import Config, Header, StoredDetection, StoredStudy, StoredTrial
from medseg_attack.storage.forms import Form, check_form
from medseg_attack.storage.heartbeats import WorkerRecord

STORED = Path(__file__).parents[1] / "stored"
GONE = object()
ODD = (GONE, None, True, -1, 0.5, 10**60, 1e300, "../../x", [1], {"a": [None]})
UNREAD = (GONE, [1])  # of fields that no form has

Reader = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """A kind of stored file.

    Attributes:
        write: writes a valid one into the working folder, and returns it.
        form: the types of its fields.
        readers: what is made of it.
    """

    write: Callable[[], Path]
    form: type[Form]
    readers: tuple[Reader, ...]


def command(*words: str) -> Reader:
    """A command that may refuse what it reads, and may not call that a defect of its own."""

    def run() -> None:
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (0, 1, 2), result.output
        assert "defect of medattack" not in result.output, result.output

    return run


def results_of(folder: str) -> Reader:
    return lambda: results([Path(folder)], unit="volume", empty="one")


def write_detector() -> Path:
    attack = detection_row() | {
        "kind": "adaptive",
        "attack": "pgd",
        "eps": "0.1",
        "auroc": 0.7,
        "low": 0.2,
        "high": 1.0,
    }
    attack |= {"auroc_noise": None, "harmed": 1.0, "noticed": 0.0, "missed": 0.5, "risk": 0.55, "alarms_0.5": 0.5}
    clean = detection_row() | {"alarms_0.5": 0.5, "alarms_0.5_low": 0.01, "alarms_0.5_high": 0.99}
    return write_detection(Path("detector"), rows=[clean, attack])


def write_trial_facts() -> Path:
    return write_trial(Path("trial"), "voted", "unet", patients=2) / "native" / "trial.json"


def write_worker() -> Path:
    write_run(Path("run"), dice_of(0, 2))
    Path("run/study.yaml").write_text("data: d\nmodels: [unet]\n")
    facts = {"host": "elsewhere", "pid": 7, "part": "0/1", "device": "cpu", "started": 1.7e9, "ended": 1.8e9}
    file = Path("run/workers/elsewhere-7.json")
    file.parent.mkdir()
    file.write_text(json.dumps(facts | {"cases": {"unet-a/fgsm": 4}}))
    return file


def show_workers() -> None:
    state = read_state(Path("run"))
    worker_sheet(state)
    run_sheet(state)


def write_entry() -> Path:
    write_run(Path("run"), dice_of(0, 3), flags=[], model_id="unet-a")
    medattack("report", "run", "--entry", "--out", "entries")
    return next(Path("entries").glob("*/*/*.json"))


def write_baseline() -> Path:
    write_run(Path("run"), dice_of(0, 2))
    medattack("compare", "run", "--save-as", "main", "--home", "home")
    return Path("home/baselines/main/0001/baseline.json")


def copied(name: str) -> Callable[[], Path]:
    """Writes what an earlier version stored, of which one file is looked at."""

    def write() -> Path:
        shutil.copytree(STORED, ".", dirs_exist_ok=True)
        return next(Path().glob(name))

    return write


def write_header() -> Path:
    """A header that has every field, of the only run."""
    file = copied("run/*/01_fgsm*/run.json")()
    for other in [*Path().glob("run/*/00_*"), *Path().glob("run/*/02_*")]:
        shutil.rmtree(other)
    content = json.loads(file.read_text())
    texts = (
        "knowledge",
        "eps_unit",
        "unit",
        "prompt",
        *(f"fit_without_{each}" for each in ("gradient", "answer", "slope")),
    )
    content |= {
        "role": "attack",
        "trained_on": 1,
        "checks": True,
        "queries": True,
        "model_id": "m",
        "run_id": "m/r",
    } | dict.fromkeys(texts, "")
    content["provenance"] = {"version": "0.1.0", "commit": "1fc2aad", "date": "2026-11-27T08:58:23+00:00", "host": "h"}
    assert content.keys() >= Header.model_fields.keys()
    file.write_text(json.dumps(content))
    return file


def write_card() -> Path:
    """A card that has every field, in a workspace."""
    file = copied("model/card.json")()
    content = json.loads(file.read_text())
    content |= {"robust_by": "pgd", "val_robust_dice": {"stomach": 0.5}, "val_mean_robust_dice": 0.5, "passes": 1}
    content |= {"blocks_gradient": True, "known_by": ["both_norms"]}
    file.write_text(json.dumps(content | {"cost": 3.1, "stopped": "no"}))
    return file


def show_card() -> None:
    _show(Path("model"), as_json=False)


def make_adaptive() -> None:
    """An attack that knows what the card of a model declares."""
    model = resolve("model", open_prepared(Path("data")).task)
    adaptive_to(model, build("fgsm", "attack"))


def write_training() -> Path:
    """The options of a training by a rule, which older ones lack."""
    file = copied("model/options.json")()
    edit(file, defences=["adversarial"])
    return file


def audit_of_nobody() -> None:
    _print([], open_prepared(Path("data")), "spectral", 5, json=True)


def tabulate() -> None:
    """The table that commands print of runs, their flags, and the facts of cards."""
    of_runs = tables(read_runs([Path("run")]), unit="volume", empty="one")
    list(cards(subjects(of_runs, Results())))


KINDS = {
    "detection": Kind(write_detector, StoredDetection, (results_of("detector"),)),
    "trial": Kind(write_trial_facts, StoredTrial, (results_of("trial"),)),
    "worker": Kind(write_worker, WorkerRecord, (show_workers,)),
    "entry": Kind(write_entry, Entry, (command("leaderboard", "entries", "--out", "board"),)),
    "baseline": Kind(write_baseline, _Record, (command("ls", "baselines", "--home", "home"),)),
    "header": Kind(write_header, Header, (tabulate,)),
    "config": Kind(copied("run/*/01_fgsm*/config.json"), Config, (tabulate,)),
    "study": Kind(copied("run/study.yaml"), StoredStudy, (command("cite", "run"),)),
    "card": Kind(write_card, TrainedCard, (show_card, command("cite", "run"))),
    "model": Kind(write_card, _Card, (make_adaptive,)),
    "training": Kind(write_training, _Trained, (command("cite", "run"),)),
    "data set": Kind(copied("data/dataset.json"), _Description, (lambda: open_prepared(Path("data")).records,)),
    "options": Kind(
        copied("data/options.json"), _Options, (command("cite", "run"), command("doctor", "--data", "data"))
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_value_at_any_place_ends_in_another_error_than_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers refuse what the form refuses; what it takes goes through all that is made of the file."""
    monkeypatch.chdir(tmp_path)
    kind = KINDS[name]
    file = kind.write()
    is_yaml = file.suffix == ".yaml"
    content = yaml.safe_load(file.read_text()) if is_yaml else json.loads(file.read_text())
    check_form(content, kind.form, file)
    for reader in kind.readers:
        reader()
    refused = 0
    for place, value, changed in mutations(content, kind.form):
        if sentence := refusal(changed, kind.form, file):
            refused += 1
            assert re.search(rf"expected the field .* in .*{file.name}", sentence)
            continue
        file.write_text(yaml.safe_dump(changed) if is_yaml else json.dumps(changed))
        for reader in kind.readers:
            try:
                reader()
            except InputError:
                pass
            except Exception as error:
                raise AssertionError(f"{file}: {value!r} at {place}") from error
    assert refused


def refusal(content: dict[str, Any], form: type[Form], file: Path) -> str:
    """The sentence that refuses the content; "" of what the form takes."""
    try:
        check_form(content, form, file)
    except InputError as error:
        return str(error)
    return ""


def mutations(content: Any, form: type[Form]) -> Iterator[tuple[list[Any], Any, Any]]:
    """Each place of a file with odd values there, fewer where no reader may look: the place, the value, the content."""
    names = {field.alias or name for name, field in form.model_fields.items()}
    for place in places(content):
        for value in ODD if place[0] in names else UNREAD:
            changed = json.loads(json.dumps(content))
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if value is GONE:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            yield place, "none" if value is GONE else value, changed


def places(content: Any) -> Iterator[list[Any]]:
    """The keys of objects, and the first and last items of lists, at every depth."""
    items = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list) and content:
        items = [(number, content[number]) for number in sorted({0, len(content) - 1})]
    for key, value in items:
        yield [key]
        yield from ([key, *rest] for rest in places(value))
