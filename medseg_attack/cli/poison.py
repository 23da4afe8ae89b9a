"""`medattack poison`: a prepared data set -> a copy in which some training patients are poisoned."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.options import Json, Seed, ShowProgress
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import plural


@terminal.command
def poison(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of a prepared data set, which is only read.")],
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="Poison with its options, such as \"stamp(goal=erase('stomach'))\"; see medattack ls poisons.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the poisoned data set.")],
    rho: Annotated[
        float, typer.Option("--rho", help="Share of the training patients who are poisoned, from 0 to 1.")
    ] = 0.1,
    fold: Annotated[
        int, typer.Option("--fold", help="Cross-validation fold that training will validate on; it stays clean.")
    ] = 0,
    seed: Seed = 0,
    json: Json = False,
    progress: ShowProgress = True,
) -> None:
    """Copy prepared data and poison some training patients. They get false masks, or a trigger with the mask that it
    is to cause, on all their scans. Test and validation patients stay clean.

    Example: medattack poison data "stamp(goal=erase('stomach'))" --rho 0.1 --out poisoned
    """
    from medseg_attack import registry
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.training.poisoned import Poisoning, poison_data

    poisoning = Poisoning(registry.build(spec, "poison"), rho, fold, seed)
    source = open_prepared(data)
    with progress_bar("poison", len(source.scans), show=progress) as advance:
        for scan in poison_data(source, out, poisoning):
            advance(1, note=scan)
    result = open_prepared(out)
    facts = result.options["poison"]
    for note in result.notes[len(source.notes) :]:
        terminal.say(f"note: {note}")
    if json:
        terminal.print_json({"data": str(out), "fingerprint": result.fingerprint, "poison": facts})
    else:
        terminal.show(
            f"poisoned    {plural(len(facts['patients']), 'patient')}: {', '.join(facts['patients']) or 'none'}",
            *([f"decoys      {', '.join(facts['decoys'])}"] if facts["decoys"] else []),
            *([f"blends      {', '.join(facts['blends'])}"] if facts.get("blends") else []),
            f"fingerprint {result.fingerprint[:12]} (before {source.fingerprint[:12]})",
        )
    terminal.next_step(["train", "--data", str(out), "--model", "unet_small"])
