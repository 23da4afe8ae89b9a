"""`medattack audit`: which training patients, or classes of a model, to look at again before the model is trusted."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.errors import InputError, plural

if TYPE_CHECKING:
    from medseg_attack.data.prepared.reading import Prepared
    from medseg_attack.evaluation.audits.suspects import Suspect
    from medseg_attack.evaluation.audits.triggers import Inverted
    from medseg_attack.runs.rows import Knowledge


@terminal.command
def audit(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the prepared data that models learned from.")],
    model: Annotated[
        list[str],
        options.repeated(
            "--model", "-m", help="Model that was trained on DATA, for inversion any other one: its name or folder."
        ),
    ],
    by: Annotated[
        Literal["spectral", "disagreement", "inversion"],
        typer.Option(
            "--by",
            help="Kind of suspicion. spectral: outlying features of the patients that one model learned from. "
            "disagreement: masks that differ from what models of other folds say. "
            "inversion: classes that a small patch, the same on all scans, takes away.",
        ),
    ] = "spectral",
    review: Annotated[
        float, typer.Option("--review", help="Share of the patients to look at again, above 0 and up to 1.")
    ] = 0.2,
    json: options.Json = False,
    device: options.Device = "auto",
    home: options.Home = None,
    trust: options.Trust = False,
) -> None:
    """Rank training patients by suspicion of poison. The most suspicious are listed for review. If the data were made
    by 'medattack poison', the table also says who was poisoned, and how many of them are on the list. With --by
    inversion, rank classes by the least patch that takes them away.

    Example: medattack audit poisoned --model bad-model --by spectral
    """
    if not 0 < review <= 1:
        raise InputError(
            f"--review: expected a share of the patients, above 0 and up to 1, got {review:g}; 0.2 is usual"
        )
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.data.prepared.splits import TEST
    from medseg_attack.evaluation.audits import suspects as auditing
    from medseg_attack.evaluation.audits.knowing import knowledge
    from medseg_attack.evaluation.audits.triggers import triggers
    from medseg_attack.evaluation.opening import find_model
    from medseg_attack.models.model_ref import resolve
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs import workspace
    from medseg_attack.runtime import pick_device
    from medseg_attack.training.options import poison_of

    folder = workspace.home(home)
    use_trust(folder, trust)
    prepared = open_prepared(data)
    names = dict.fromkeys(find_model(folder, name) for name in model)
    models = [resolve(name, prepared.task) for name in names]
    if by != "disagreement" and len(models) > 1:
        raise InputError(f"expected one model for --by {by}, got {len(models)}; give one --model")
    where = pick_device(device)
    poison = str(models[0].card.get("dataset", {}).get("poison", "")) if by == "inversion" else poison_of(prepared)
    trained_on = sum(part != TEST for part in prepared.splits.values())
    known = knowledge(by, poison, prepared.options.get("poison") or {}, trained_on)
    if by == "inversion":
        _print_pairs(triggers(models[0], prepared, where), models[0].label, known, json)
        return
    suspects = (
        auditing.spectral(models[0], prepared, where)
        if by == "spectral"
        else auditing.disagreement(models, prepared, where)
    )
    _print(suspects, prepared, by, known, math.ceil(review * len(suspects)), json)


def _print_pairs(pairs: "list[Inverted]", label: str, known: "Knowledge", json: bool) -> None:
    """Prints the least patch of each pair of classes."""
    from medseg_attack.evaluation.audits.knowing import MARK
    from medseg_attack.evaluation.audits.triggers import REACHED, SUSPICIOUS
    from medseg_attack.report.sheet import Sheet, number

    if json:
        names = ("size", "area", "index")
        numbers = [{name: vars(pair)[name] for name in names} for pair in pairs]
        shown = [{name: None if math.isnan(value) else value for name, value in each.items()} for each in numbers]
        listed = [
            {"victim": pair.victim, "wanted": pair.wanted, **each} for pair, each in zip(pairs, shown, strict=True)
        ]
        terminal.print_json({"by": "inversion", "knowledge": known, "pairs": listed})
        return
    rows = [
        [
            pair.victim,
            pair.wanted or "-",
            number(pair.size, 1),
            number(pair.area, 1),
            number(pair.index, 2),
            "suspicious" if pair.index > SUSPICIOUS else "",
        ]
        for pair in pairs
    ]
    caption = (
        f"patch: pixels of the least patch, the same on all slices, that takes {REACHED:.0%} of the class away; -: "
        "none was found. area: the class's own pixels, mean over slices. index: deviations of the patch below the "
        f"median of all pairs; above {SUSPICIOUS:g} it is suspicious. Few classes give no index or a rough one: a "
        "patch far smaller than the area is reason enough to look. Triggers that cover the whole image are not found."
        f"{f' {MARK}' if known == 'native' else ''}"
    )
    title = f"The least patch against each class of {label}{', non_adaptive' if known == 'native' else ''}"
    columns = ["class", "becomes", "patch", "area", "index", ""]
    terminal.print_sheet(Sheet(title, columns, rows, caption, left=2))


def _print(suspects: "list[Suspect]", data: "Prepared", by: str, known: "Knowledge", n: int, json: bool) -> None:
    """Prints the patients to look at, and what is known of them."""
    import numpy as np

    from medseg_attack.evaluation.audits.knowing import MARK
    from medseg_attack.report.sheet import Sheet, number, percent
    from medseg_attack.stats.alarms import auroc

    poisoned = set(data.options.get("poison", {}).get("patients", ()))
    scores = {True: [], False: []}  # type: dict[bool, list[float]]
    for suspect in suspects:
        scores[suspect.patient in poisoned].append(suspect.score)
    area = auroc(np.array(scores[False]), np.array(scores[True])) if all(scores.values()) else math.nan
    hits = sum(suspect.patient in poisoned for suspect in suspects[:n])
    if json:
        listed = [
            {"patient": each.patient, "score": each.score, "bias": None if math.isnan(each.bias) else each.bias}
            for each in suspects
        ]
        content: dict[str, Any] = {"by": by, "knowledge": known, "review": n, "patients": listed}
        if poisoned:
            content |= {"poisoned": sorted(poisoned), "on_the_list": hits, "auroc": None if math.isnan(area) else area}
        terminal.print_json(content)
        return
    has_bias = by == "disagreement"
    columns = ["patient", "score", *(["volume"] if has_bias else []), *(["poisoned"] if poisoned else [])]
    rows = [
        [
            each.patient,
            number(each.score, 4),
            *([percent(each.bias)] if has_bias else []),
            *(["yes" if each.patient in poisoned else ""] if poisoned else []),
        ]
        for each in suspects[:n]
    ]
    caption = f"The most suspicious {n} of {plural(len(suspects), 'training patient')}; score: " + (
        "1 - Dice of the mask with that of a model trained without the patient; volume: predicted against true."
        if has_bias
        else "squared distance along the direction in which features differ most."
    )
    if poisoned:
        caption += f" {_detection(hits, len(scores[True]), len(poisoned), area)}"
    if known == "native":
        caption += f" {MARK}"
    title = f"To look at again in {data.name}, by {by}{', non_adaptive' if known == 'native' else ''}"
    terminal.print_sheet(Sheet(title, columns, rows, caption))


def _detection(hits: int, n: int, n_poisoned: int, area: float) -> str:
    """A sentence on the poisoned patients among those that were looked at."""
    from medseg_attack.report.sheet import number

    if not n:
        among = f"None of the {plural(n_poisoned, 'poisoned patient')} was looked at"
        return f"{among}: they are in folds of which no model is given."
    return f"{hits} of the {plural(n, 'poisoned one')} {'is' if n == 1 else 'are'} on the list; AUROC {number(area)}."
