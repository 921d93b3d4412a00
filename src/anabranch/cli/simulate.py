"""`anabranch simulate`: options of its commands. Only typer is imported here; the work is in `anabranch.analysis`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

simulate = typer.Typer(
    name="simulate",
    help="Arithmetic that needs no model. How to read it: docs/spo.md, docs/breadth.md",
    no_args_is_help=True,
)


@simulate.callback()
def _all_simulations() -> None:
    """Without this a group of one command would be that command."""


@simulate.command("group-latency")
def group_latency(
    batch: Annotated[int, typer.Option(help="Answers that fill a batch.")] = 24,
    group_size: Annotated[int, typer.Option(help="Answers of a group.")] = 8,
    oversample: Annotated[
        float | None, typer.Option(help="Start so many times the answers of a batch. Default: 2.")
    ] = None,
    groups: Annotated[int | None, typer.Option(help="Groups that are started, in place of --oversample.")] = None,
    trials: Annotated[int, typer.Option(help="Batches that are drawn.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Where to draw it.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where to write all numbers.", show_default=False)
    ] = None,
) -> None:
    """How much sooner a batch is complete when nobody waits for the slowest answer of a group."""
    from anabranch.analysis import group_latency as command
    from anabranch.analysis.latency import Setting, started

    command.group_latency(
        Setting(batch, started(batch, group_size, oversample, groups), group_size, trials, seed), out, json
    )


@simulate.command("mass-balance")
def mass_balance(
    size: Annotated[str, typer.Option(help="ci: 12,800 tokens, a second in all; full: the paper's 128,000.")] = "ci",
    n: Annotated[
        str | None,
        typer.Option("--n", metavar="N,N,...", help="Draws of a step. Default: those of the size.", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Default: 300 (ci), 1000 (full).", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each N.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first run of each N.")] = 0,
    eps: Annotated[float, typer.Option(help="Of AdamW. Above most gradients here: try 1e-12.")] = 1e-8,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    out: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Where to draw it.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where to write all numbers.", show_default=False)
    ] = None,
) -> None:
    """What more draws of one token do to the probability of being right (BroRL's simulation)."""
    from anabranch.analysis import mass_balance_command as command
    from anabranch.analysis.mass_balance import Adam

    asked = command.Asked(size, command.parse_draws(n), steps, seeds, seed, Adam(eps=eps, weight_decay=weight_decay))
    command.mass_balance(asked, out, json)
