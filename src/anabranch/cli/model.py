"""`anabranch model`: the built-in models, and how to make one ahead of its first use. Only typer is imported here."""

from __future__ import annotations

from typing import Annotated

import typer

model = typer.Typer(
    name="model",
    help="Built-in models. What the small ones are for: docs/small-models.md",
    no_args_is_help=True,
)


@model.command("list")
def listing() -> None:
    """List the built-in models: size, and whether they are in the cache."""
    from rich.console import Console
    from rich.table import Table

    from anabranch.modeling import load, small, smollm
    from anabranch.modeling.cache import models_folder

    table = Table(title=f"Built-in models, cached in {models_folder()}", title_justify="left")
    for column in ("model.source=", "parameters", "state"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    state = "not converted: about 20 seconds at first use" if load.needs_conversion(smollm.BUILTIN) else "converted"
    table.add_row(smollm.BUILTIN, "134.5M", state)
    for name, (family, _) in small.NAMES.items():
        state = "built" if small.is_built(name) else "not built: about 2 minutes at first use"
        table.add_row(name, f"{small.FAMILIES[family].parameters / 1e6:.1f}M", state)
    Console().print(table)


@model.command()
def build(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `anabranch model list` shows it.", show_default=False)
    ],
) -> None:
    """Make a built-in model now, if it is not in the cache. Small models of a family are trained together."""
    import sys

    from anabranch.modeling import load
    from anabranch.modeling.small import training_lines
    from anabranch.tracking.display import make_display

    load.check_builtin(name)
    with make_display(sys.stdout) as display:
        for line in training_lines(name):  # it is there already: what its training came to
            display.note(line)
        load.prepare(name, display)
        display.note(f"{name}: {load.resolve(name)}")
