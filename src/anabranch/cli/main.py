"""The command line. Only typer is imported here, so that `--help` answers at once; the work is in `commands`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anabranch.cli.bench import bench
from anabranch.cli.model import model
from anabranch.cli.simulate import simulate
from anabranch.errors import AnabranchError

USER_ERROR = 2
"""Exit code of a mistake that the user can mend."""
SOME_FAILED = 1
"""Exit code of a study of which some runs failed; its report says which."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


class Commands(TyperGroup):
    """The group of all commands, and the boundary at which errors become messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error raised on purpose is printed without a traceback, any other one keeps it."""
        try:
            return super().invoke(ctx)
        except AnabranchError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Train language models with RL from verifiable rewards. Start with: anabranch train quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a preset, or a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes, such as optim.lr=2e-6 data.path=gsm8k.jsonl.", show_default=False
    ),
]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-SEED, with a number if that exists.")]


def main() -> None:
    """Entry point of the command `anabranch`."""
    # OpenMP threads that wait spin for up to a millisecond at every small operation; on a machine that does something
    # else as well that costs a factor of 3 and more. Read by libgomp when torch is loaded, so it must be set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from anabranch import __version__

        print(f"anabranch {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def train(
    recipe: Name,
    overrides: Overrides = None,
    out: Out = None,
    steps: Annotated[int | None, typer.Option(help="RL steps; the same as steps=N.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop RL after so long; the same as seconds=S.")] = None,
) -> None:
    """Train a model: cold start if the recipe has one, then RL."""
    from anabranch.cli import commands

    commands.train(recipe, _with(overrides, steps=steps, seconds=seconds), out)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    steps: Annotated[int | None, typer.Option(help="Train up to this step instead of the recipe's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop RL after so long in all.")] = None,
) -> None:
    """Go on with a run that was stopped or killed, exactly where it was."""
    from anabranch.cli import commands

    commands.resume(run, steps, seconds)


@app.command()
def sft(recipe: Name, overrides: Overrides = None, out: Out = None) -> None:
    """Train on worked examples from a file (sft.path=FILE.jsonl), without RL."""
    from anabranch.cli import commands

    commands.sft(recipe, overrides or [], out)


@app.command(name="eval")
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="Run folder, model folder, or model name.", show_default=False)
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(help="FILE.jsonl, a reasoning-gym name, or hub:ID. Default: the run's own held-out problems."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers a problem.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="How many problems.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write answers and verdicts. Default: RUN/eval-DATA-STEP, or runs/eval-MODEL-DATA."),
    ] = None,
) -> None:
    """Measure the accuracy of a model or of a run's last checkpoint."""
    from anabranch.cli import commands

    commands.evaluate(target, data, samples, problems, overrides or [], out)


@app.command()
def values(
    recipe: Name,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers a problem.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder of answers and values.json. Default: runs/values-NAME-SEED.")
    ] = None,
) -> None:
    """Measure how often a model is right on each training problem: first values for algorithm.tracker."""
    from anabranch.cli import commands

    commands.values(recipe, overrides or [], samples, out)


@app.command()
def show(
    recipe: Name,
    overrides: Overrides = None,
    against: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Print only what differs from this one.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say above every key what it means.")] = False,
) -> None:
    """Print a recipe as YAML, or how it differs from another."""
    from anabranch.cli import commands

    commands.show(recipe, overrides or [], against, explain)


@app.command()
def recipes() -> None:
    """List the presets."""
    from anabranch.cli import commands

    commands.recipes()


@app.command()
def ablate(
    recipe: Name,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=A,B,C",
            help="An axis and its values; may be given several times. recipe=grpo,lite_ppo compares methods.",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:KEY=VALUE;...", help="One more arm with several changes; 'base:' has none."),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N or A,B,C", help="How many seeds, or which ones.")] = "5",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the CPU's threads.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: studies/NAME-HASH.")] = None,
) -> None:
    """Compare settings or methods: a grid of runs with several seeds, and a report. The first arm is the reference."""
    from anabranch.study import command

    asked = command.Asked(recipe, tuple(overrides or ()), tuple(vary or ()), tuple(arm or ()), seeds)
    if command.ablate(asked, out, jobs):
        raise typer.Exit(SOME_FAILED)


@app.command()
def report(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a study, or its results.json.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Where the report goes. Default: into the folder.")] = None,
) -> None:
    """Write the report of a study again."""
    from anabranch.study import command

    command.report(study, out)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which one. Without it: list them.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A part that takes minutes, with a folder of its own.")
    ] = False,
    only: Annotated[str | None, typer.Option(metavar="T1,T3", help="Run only the arms of these findings now.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N or A,B,C", help="Default: as the reproduction says.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: one a core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: studies/NAME-HASH.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DOCS", help="Also write the ledger, DOCS/reproductions.md and below.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="STUDY", help="Run nothing: judge these results (folder or results.json).")
    ] = None,
) -> None:
    """Run a paper's findings as claims written down beforehand, and judge them."""
    from anabranch.reproductions import command

    if name is None:
        command.show_listing()
    elif results is not None:
        given = {"--quick": quick, "--only": only, "--seeds": seeds, "--jobs": jobs, "--out": out}
        command.refuse_with_results([option for option, value in given.items() if value])
        command.rewrite(name, results, ledger)
    elif command.reproduce(name, quick=quick, only=only, seeds=seeds, out=out, at_once=jobs, ledger=ledger):
        raise typer.Exit(SOME_FAILED)


@app.command()
def breadth(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Where to draw it.", show_default=False)] = None,
) -> None:
    """What the diagnostics of runs say about breadth: mass balance and pass@k (docs/breadth.md)."""
    from anabranch.analysis import breadth as command

    command.breadth(runs, out)


@app.command()
def doctor() -> None:
    """Look at this machine: versions, speed, what is installed and what is missing."""
    from anabranch.cli import doctor

    doctor.report()


app.add_typer(bench)
app.add_typer(model)
app.add_typer(simulate)


def _with(overrides: list[str] | None, **options: float | None) -> list[str]:
    """Overrides with the options that were given behind them, so that an option wins over a KEY=VALUE."""
    return [*(overrides or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
