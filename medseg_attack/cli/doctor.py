"""`medattack doctor`: is this machine ready, and is this model read as it is meant?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Data, Device, Home, Json, Trust, model_to
from medseg_attack.cli.terminal import FAILED
from medseg_attack.escaping import visible, wrap


@terminal.command
def doctor(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help=f"{model_to('examine instead of the machine')} It is examined on cases of --data."
        ),
    ] = "",
    data: Data = None,
    device: Device = "auto",
    home: Home = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Check this machine, the arrays of --data, or a model. Exit code 1 if something is wrong.

    Example: medattack doctor --model "own('net.py:build', weights='net.pth')" --data medattack_runs/data/acdc
    """
    damages = _damages(data) if data else []
    if model:
        from medseg_attack.models.trust import use_trust
        from medseg_attack.runs.workspace import home as workspace_of

        use_trust(workspace_of(home), trust)
        _print_model(model, data, home, device, json)
    else:
        _print_machine(home, json, damages if data else None)
    for text in damages:
        terminal.say(f"damaged: {text}")
    if damages:
        raise typer.Exit(FAILED)


def _damages(data: Path) -> list[str]:
    """A sentence for each scan of a prepared data set whose arrays are not what was prepared."""
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.storage.stages import begin_stage

    begin_stage("reading all arrays")
    prepared = open_prepared(data)
    return prepared.damages(prepared.scans)


def _print_machine(home: Path | None, json: bool, damages: list[str] | None) -> None:
    """Prints versions, devices, decoders and disk; of a data set, if one was looked at, whether it is whole."""
    from medseg_attack.checks.machine import machine_facts
    from medseg_attack.runs.workspace import home as workspace_of

    facts = machine_facts(workspace_of(home))
    if damages is not None:
        facts["data"] = not damages
    if json:
        terminal.print_json(facts)
    else:
        for name, value in facts.items():
            _print_fact(f"{name:<12}", value)
    if not all(facts["decoders"].values()):
        raise typer.Exit(FAILED)


def _print_model(name: str, data: Path | None, home: Path | None, device: str, json: bool) -> None:
    """Prints facts and flags of a model on a few cases of the test split."""
    from medseg_attack.checks.model_profile import profile
    from medseg_attack.data.prepared.subsets import informative
    from medseg_attack.evaluation.opening import open_model
    from medseg_attack.models.segmodel import frozen
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runtime import pick_device
    from medseg_attack.types import Batch

    model_ref, prepared = open_model(name, workspace_of(home), data)
    where = pick_device(device)
    model = model_ref.load(prepared.task, where)
    cases = informative(prepared, prepared.refs("test", dims=model_ref.dims))
    with frozen(model):
        facts, flags = profile(model, Batch.of(cases, where))
    n_weights = f"{model_ref.card.get('n_parameters', 0):,}"
    facts = {"model": model_ref.label, "weights": n_weights, "cases": [case.id for case in cases]} | facts
    if json:
        terminal.print_json(facts | {"flags": [flag.record() for flag in flags]})
    else:
        for fact, value in facts.items():
            _print_fact(f"{fact:<20}", value)
        terminal.print_flags(flags, none="No flag was raised: nothing speaks against measuring this model.")
    if any(finding.flag.verdict == "invalid" for finding in flags):
        raise typer.Exit(FAILED)
    attack = ["--attack", "square"] if model.black_box else ["--loss", "bce"]
    terminal.next_step(["attack", *(["--data", str(data)] if data else []), "--model", name, *attack, "--eps", "4/255"])


def _print_fact(name: str, value: Any) -> None:
    from rich.text import Text

    console = consoles.out()
    first, *more = wrap(visible(_text(value)), console.width - len(name) - 1)
    console.print(Text.assemble((name, "bold"), f" {first}"))
    for line in more:
        console.print(f"{' ' * len(name)} {line}")


def _text(value: Any) -> str:
    """A fact as it is printed."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return {True: "ok", False: "BROKEN"}.get(value, str(value)) if isinstance(value, bool) else str(value)
