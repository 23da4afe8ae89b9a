"""The command line: options -> registry -> one call -> where it wrote. Heavy imports happen inside the commands."""

from typing import Annotated

import typer

from medseg_attack import __version__
from medseg_attack.cli.attack import attack
from medseg_attack.cli.compare import compare
from medseg_attack.cli.demo import demo
from medseg_attack.cli.doctor import doctor
from medseg_attack.cli.evaluate import evaluate
from medseg_attack.cli.ls import ls
from medseg_attack.cli.prepare import prepare
from medseg_attack.cli.train import train

app = typer.Typer(
    name="medattack",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How far does a perturbation that nobody can see move a medical segmentation model, organ by organ?",
)
for one in (prepare, train, attack, evaluate, compare, demo, ls, doctor):
    app.command()(one)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"medattack {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app()
