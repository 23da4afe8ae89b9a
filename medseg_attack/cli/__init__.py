"""The command line: options -> registry -> one call -> where it wrote. Heavy imports happen inside the commands."""

import os
import re
from typing import Annotated, Any

import typer
from typer._click import Context, Parameter
from typer._click.exceptions import BadParameter, MissingParameter
from typer._coercion import RuntimeParam, build_runtime_param
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from medseg_attack import __version__
from medseg_attack.cli import terminal
from medseg_attack.cli.attack import attack
from medseg_attack.cli.audit import audit
from medseg_attack.cli.certify import certify
from medseg_attack.cli.cite import cite
from medseg_attack.cli.compare import compare
from medseg_attack.cli.completion import with_completion
from medseg_attack.cli.defend import defend
from medseg_attack.cli.demo import demo
from medseg_attack.cli.detect import detect
from medseg_attack.cli.doctor import doctor
from medseg_attack.cli.evaluate import evaluate
from medseg_attack.cli.explain import explain
from medseg_attack.cli.extract import extract
from medseg_attack.cli.figure import figure
from medseg_attack.cli.leaderboard import leaderboard
from medseg_attack.cli.ls import ls
from medseg_attack.cli.new import new
from medseg_attack.cli.poison import poison
from medseg_attack.cli.prepare import prepare
from medseg_attack.cli.readers import readers
from medseg_attack.cli.report import report
from medseg_attack.cli.rm import rm
from medseg_attack.cli.screen import screen
from medseg_attack.cli.selftest import selftest
from medseg_attack.cli.train import train
from medseg_attack.cli.verify import verify
from medseg_attack.cli.watch import watch
from medseg_attack.errors import is_finite

# idle threads of one process must not spin on cores that another needs: two trainings side by side took 20 times as
# long otherwise. The variable is read when torch is loaded, which happens inside the commands.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class _LateCoercion(RuntimeParam):
    """The check of an option's value by pydantic, which takes longer to load than help to print: done where needed."""

    def _coerce_value(self, value: Any, param: Any, ctx: Context) -> Any:
        if self.annotation in (str, bool) and type(value) is self.annotation:
            return value
        checked = build_runtime_param(param.type_descriptor).coerce(value, param, ctx)
        if not is_finite(tuple(checked) if isinstance(checked, list) else checked):
            got = " ".join(value) if isinstance(value, list | tuple) else value
            raise BadParameter(f"expected a finite number, got {got}; write another", ctx, param)
        return checked


def _with_late_coercion(params: list[Parameter]) -> list[Parameter]:
    for param in params:
        if isinstance(param, TyperOption | TyperArgument):
            described = param.type_descriptor
            param._runtime_param = _LateCoercion(described.parameter_info, described.annotation)
    return params


class _Group(TyperGroup):
    def get_params(self, ctx: Context) -> list[Parameter]:
        return _with_late_coercion(super().get_params(ctx))


class _Command(TyperCommand):
    def get_params(self, ctx: Context) -> list[Parameter]:
        return _with_late_coercion(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Reads the words of a line; what lacks one is answered with a line that has it."""
        try:
            return super().parse_args(ctx, args)
        except MissingParameter as error:
            lacking = error.param
            if lacking is None:
                raise
            choices = (lacking.get_missing_message(ctx=ctx) or "").rstrip(".")
            example = re.search(r"Example: medattack .*(?:\n.+)*", self.help or "")
            parts = [" ".join(text.split()) for text in (choices, example[0] if example else "") if text]
            hint = lacking.get_error_hint()
            raise MissingParameter(". ".join(parts), ctx, None, hint, lacking.param_type_name) from None


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
    extract,
    attack,
    watch,
    defend,
    evaluate,
    certify,
    detect,
    screen,
    compare,
    report,
    leaderboard,
    figure,
    readers,
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
    app.command(cls=_Command)(with_completion(command))


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
