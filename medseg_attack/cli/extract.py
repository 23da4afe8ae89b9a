"""`medattack extract`: a copy of a model, learned from its answers to a counted number of queries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    import torch

    from medseg_attack.data.prepared.reading import Prepared
    from medseg_attack.models.model_ref import ModelRef
    from medseg_attack.models.segmodel import SegModel


@terminal.command
def extract(
    victim: Annotated[str, typer.Option("--victim", help="Model that is asked: its name, folder or spec.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the copy.")],
    data: options.Data = None,
    queries: Annotated[
        int, typer.Option("--queries", help="Slices that the victim is asked about; of a 3-D one, whole scans.")
    ] = 100,
    answers: Annotated[
        Literal["probabilities", "masks", "volumes"],
        typer.Option(
            "--answers",
            help="Answers of the victim: probabilities, masks, or the volumes of the classes in a slice or scan.",
        ),
    ] = "probabilities",
    digits: Annotated[
        int, typer.Option("--digits", help="Digits that probabilities are rounded to, as a defence; 0 gives all.")
    ] = 0,
    poisoning: Annotated[
        float,
        typer.Option(
            "--poisoning",
            help="Strength of the reverse sigmoid on probabilities, as a defence, from 0 to below 1; 0.7 is strong.",
        ),
    ] = 0.0,
    mad: Annotated[
        float,
        typer.Option(
            "--mad",
            help="L1 distance, from 0 to 2, within which each pixel's probabilities turn the thief's gradient most, as "
            "a defence (MAD); 0.5 is usual.",
        ),
    ] = 0.0,
    hardened: Annotated[
        bool,
        typer.Option(
            "--hardened", help="Learn from the masks that probabilities stand for: the attack that knows a defence."
        ),
    ] = False,
    selection: Annotated[
        Literal["random", "k_centre"],
        typer.Option("--selection", help="Choice of the queries: at random, or each as unlike those before as can be."),
    ] = "random",
    model: Annotated[str, typer.Option("--model", "-m", help="Network of the copy.")] = "unet_small",
    steps: Annotated[int, typer.Option("--steps", help="Steps of the copy's training.")] = 1000,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate at the start.")] = 1e-3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Slices, or parts of scans, per step.")] = 8,
    test_data: Annotated[
        Path | None,
        typer.Option(
            "--test-data",
            help="Prepared data whose test patients the copy is measured on, such as the victim's own.",
            show_default="--data",
        ),
    ] = None,
    monitor: Annotated[
        Path | None,
        typer.Option(
            "--monitor",
            help="Data that the victim learned from: a monitor of the queries, as a defence, knows its patients.",
            show_default="none",
        ),
    ] = None,
    eps: Annotated[str, typer.Option("--eps", help="Budget of PGD for the transfer ratio, such as 4/255.")] = "4/255",
    seed: options.Seed = 0,
    json: options.Json = False,
    device: options.Device = "auto",
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Steal a model through its answers. A network learns from them alone, and is then compared with its victim:
    agreement, Dice, and whether attacks on the copy harm the victim.

    Example: medattack extract --victim unet --queries 200 --answers masks --data proxy --out copy
    """
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.evaluation.extracting import worth
    from medseg_attack.evaluation.opening import open_model
    from medseg_attack.models import checkpoints
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.side_tables.extraction import extraction_sheet, monitor_sheet
    from medseg_attack.runs import workspace
    from medseg_attack.runtime import pick_device
    from medseg_attack.threat.budgets import parse_budget
    from medseg_attack.training.extraction import loop
    from medseg_attack.training.extraction.options import UNITS, Extraction
    from medseg_attack.training.extraction.student import PIECES

    budget = parse_budget(eps)
    if budget.unit:
        raise InputError(f"--eps: expected a fraction of the window, got {eps}; write such as 4/255")
    plan = Extraction(model, queries, answers, digits, steps, lr, batch_size, seed, selection, poisoning, hardened, mad)
    folder = workspace.home(home)
    use_trust(folder, trust)
    victim_ref, proxy = open_model(victim, folder, data)
    tested = proxy if test_data is None else open_prepared(test_data)
    where = pick_device(device)
    asked = victim_ref.load(proxy.task, where)
    measured_on = victim_ref.load(tested.task, where)
    if victim_ref.card.get("dataset", {}).get("fingerprint") == proxy.fingerprint:
        terminal.say(f"note: {proxy.name} is what the victim learned from; a thief has other patients")
    with progress_bar("extract", PIECES, show=progress) as advance:
        for loss in loop.extract(plan, asked, victim_ref.weights_hash, proxy, out, where):
            advance(1, note=f"loss {loss:.4f}")
    student = checkpoints.load(out, tested.task, where)
    measured = worth(student, measured_on, tested, budget.value, where)
    facts: dict[str, Any] = {"label": victim_ref.label, "queries": queries, "of": UNITS[asked.dims] + "s"}
    facts |= {"answers": answers, "digits": digits}
    facts |= {"poisoning": poisoning, "mad": mad, "hardened": hardened, "knowledge": plan.knowledge}
    if monitor is not None:
        facts["monitor"] = _monitored(monitor, victim_ref, asked, proxy, out, where)
    if json:
        terminal.print_json({"folder": str(out), **facts, "eps": budget.value, **measured})
    else:
        rounded = f", {digits} digits" if digits else ""
        bent = f", poisoning {poisoning:g}" if poisoning else ""
        bent += f", mad {mad:g}" if mad else ""
        taken = ", hardened" if hardened else ", non_adaptive" if plan.knowledge == "native" else ""
        how = f"{answers}{rounded}{bent}{taken}"
        title = f"Copy of {victim_ref.label} after {queries} queries of {facts['of']} ({how}), eps {eps}"
        terminal.print_sheet(extraction_sheet(measured, title))
        if monitor is not None:
            terminal.print_sheet(monitor_sheet(facts["monitor"], queries))
    words = ["attack", *(["--data", str(test_data or data)] if test_data or data else []), "--model", victim]
    terminal.next_step([*words, "--attack", f"transfer(surrogate={str(out)!r})"])


def _monitored(
    own: Path, victim_ref: "ModelRef", victim: "SegModel", proxy: "Prepared", out: Path, device: "torch.device"
) -> dict[str, Any]:
    """The verdict of a monitor of the victim's owner on the queries."""
    from dataclasses import asdict

    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.evaluation.monitoring import watch
    from medseg_attack.training.extraction.loop import QUERIES, read_queries

    by_id = {ref.id: ref for ref in proxy.refs("train", 0, victim.dims)}
    cases = read_queries(out)
    if strangers := [case for case in cases if case not in by_id]:
        raise InputError(f"expected cases of {proxy.root} in {out / QUERIES}, got {strangers[0]!r:.60}; extract again")
    queries = [by_id[case] for case in cases]
    fold = int((victim_ref.card.get("training") or {}).get("fold", 0))
    return asdict(watch(victim, open_prepared(own), proxy, queries, fold, device))
