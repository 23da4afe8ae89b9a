"""The command line: options -> registry -> one call -> where it wrote. Heavy imports happen inside the commands."""

import os
from typing import Annotated

import typer
from typer._click import Context, Parameter
from typer._coercion import PassThroughRuntimeParam
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from medseg_attack import __version__
from medseg_attack.cli import terminal
from medseg_attack.cli.attack import attack
from medseg_attack.cli.audit import audit
from medseg_attack.cli.certify import certify
from medseg_attack.cli.cite import cite
from medseg_attack.cli.compare import compare
from medseg_attack.cli.defend import defend
from medseg_attack.cli.demo import demo
from medseg_attack.cli.detect import detect
from medseg_attack.cli.doctor import doctor
from medseg_attack.cli.evaluate import evaluate
from medseg_attack.cli.explain import explain
from medseg_attack.cli.figure import figure
from medseg_attack.cli.ls import ls
from medseg_attack.cli.new import new
from medseg_attack.cli.poison import poison
from medseg_attack.cli.prepare import prepare
from medseg_attack.cli.report import report
from medseg_attack.cli.rm import rm
from medseg_attack.cli.screen import screen
from medseg_attack.cli.selftest import selftest
from medseg_attack.cli.train import train
from medseg_attack.cli.verify import verify

# idle threads of one process must not spin on cores that another needs: two trainings side by side took 20 times as
# long otherwise. The variable is read when torch is loaded, which happens inside the commands.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _typed(params: list[Parameter]) -> list[Parameter]:
    """Parameters of which texts and switches are taken as they were typed.

    typer asks pydantic whether a text is a text, and to load pydantic takes longer than to print help.
    """
    for param in params:
        if isinstance(param, TyperOption | TyperArgument):
            kind, info = param.type_descriptor.annotation, param.type_descriptor.parameter_info
            if kind is str or (kind is bool and param.envvar is None):
                param._runtime_param = PassThroughRuntimeParam(info, kind)
    return params


class _Group(TyperGroup):
    def get_params(self, ctx: Context) -> list[Parameter]:
        return _typed(super().get_params(ctx))


class _Command(TyperCommand):
    def get_params(self, ctx: Context) -> list[Parameter]:
        return _typed(super().get_params(ctx))


app = typer.Typer(
    name="medattack",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="How far does a perturbation that nobody can see move a medical segmentation model, organ by organ?",
)
for command in (
    prepare,
    poison,
    train,
    audit,
    attack,
    defend,
    evaluate,
    certify,
    detect,
    screen,
    compare,
    report,
    figure,
    cite,
    verify,
    demo,
    ls,
    rm,
    new,
    explain,
    doctor,
    selftest,
):
    app.command(cls=_Command)(command)


def _version(is_asked: bool | None) -> None:
    if is_asked:
        print(f"medattack {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = None,
) -> None:
    pass


def main() -> None:
    """Runs a command line; results that cannot be written are an error, unless nobody reads on."""
    terminal.exit_with(app)
