"""`anabranch bench`: the options of its commands. Only typer is imported here; the work is in `anabranch.bench`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(
    name="bench",
    help="Measure this library on this machine, with answers of a forced length. How to read it: docs/benchmarks.md",
    no_args_is_help=True,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes, such as engine.max_rows=512 train.row_tokens=2048.", show_default=False
    ),
]
Model = Annotated[str, typer.Option(help="Built-in name, folder, or Hugging Face id.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: measured, see model.threads.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts.")]
Answers = Annotated[int, typer.Option(min=1, help="Answers to each prompt.")]
Tokens = Annotated[int, typer.Option(min=1, help="New tokens of every answer, exactly.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of every prompt, exactly.")]
Warmup = Annotated[int, typer.Option(min=0, help="Runs before, which do not count.")]
Repeats = Annotated[int, typer.Option(min=1, help="Runs that count.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Where to write all numbers.", show_default=False)
]

SMOLLM2 = "smollm2-135m-instruct"


class Axis(StrEnum):
    """What `bench scale` can double."""

    ANSWERS = "answers"
    PROMPTS = "prompts"
    SAMPLES = "samples"


def _timed(name: str, prompts: int, answers: int, text: str) -> None:
    """Make the command of a measurement that has no options of its own."""

    @bench.command(name, help=text)
    def command(
        overrides: Overrides = None,
        model: Model = SMOLLM2,
        prompts: Prompts = prompts,
        answers: Answers = answers,
        tokens: Tokens = 64,
        prompt_tokens: PromptTokens = 80,
        warmup: Warmup = 1,
        repeats: Repeats = 5,
        threads: Threads = 0,
        dtype: Dtype = "auto",
        json: Json = None,
    ) -> None:
        from anabranch.bench.generate import generate
        from anabranch.bench.step import step
        from anabranch.bench.workloads import bench_recipe

        recipe = bench_recipe(
            model=model,
            dtype=dtype,
            threads=threads,
            prompts=prompts,
            answers=answers,
            tokens=tokens,
            overrides=overrides or (),
        )
        measure = {"generate": generate, "step": step}[name]
        measure(recipe, prompt_tokens=prompt_tokens, warmup=warmup, repeats=repeats, path=json)


_timed("generate", 1, 64, "Generation alone: tokens a second, and its phases.")
_timed("step", 8, 8, "A full on-policy step: answers a second, its phases, peak memory.")


@bench.command()
def train(
    overrides: Overrides = None,
    model: Model = SMOLLM2,
    prompts: Prompts = 8,
    answers: Answers = 8,
    tokens: Tokens = 64,
    prompt_tokens: PromptTokens = 80,
    plain_answers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Answers that plain transformers computes at a time. Default: train.row_tokens' worth."
        ),
    ] = None,
    warmup: Warmup = 1,
    repeats: Repeats = 3,
    threads: Threads = 0,
    dtype: Dtype = "auto",
    json: Json = None,
) -> None:
    """Forward and backward, in turns with plain transformers: tokens a second, and the share of matrix products."""
    from anabranch.bench import train as measure
    from anabranch.bench.workloads import bench_recipe

    recipe = bench_recipe(
        model=model,
        dtype=dtype,
        threads=threads,
        prompts=prompts,
        answers=answers,
        tokens=tokens,
        overrides=overrides or (),
    )
    measure.train(
        recipe,
        prompt_tokens=prompt_tokens,
        plain_answers=plain_answers,
        warmup=warmup,
        repeats=repeats,
        path=json,
    )


@bench.command()
def scale(
    overrides: Overrides = None,
    model: Model = SMOLLM2,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the smallest step.")] = 8,
    answers: Annotated[int, typer.Option(min=2, help="Answers to each prompt in the smallest step.")] = 8,
    tokens: Tokens = 64,
    prompt_tokens: PromptTokens = 80,
    axis: Annotated[
        list[Axis] | None, typer.Option(help="What doubles; may be given several times. Default: all.")
    ] = None,
    doublings: Annotated[int, typer.Option(min=0, help="How often it doubles; 0: leave growth out.")] = 2,
    wide: Annotated[int, typer.Option(min=0, help="Breadth: answers to one prompt; 0: leave breadth out.")] = 512,
    narrow: Annotated[int, typer.Option(min=2, help="Breadth: answers to each of WIDE / NARROW prompts.")] = 16,
    wide_prompt_tokens: Annotated[int, typer.Option(min=1, help="Breadth: tokens of every prompt.")] = 220,
    wide_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Breadth: new tokens of every answer; may be given several times. Default: 64 and 16."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each size, after one that does not count.")] = 2,
    threads: Threads = 0,
    dtype: Dtype = "auto",
    json: Json = None,
) -> None:
    """How time and memory of a step grow, and many answers to one prompt against few answers to many."""
    from anabranch.bench import scale as measure
    from anabranch.bench.workloads import bench_recipe

    recipe = bench_recipe(
        model=model,
        dtype=dtype,
        threads=threads,
        prompts=prompts,
        answers=answers,
        tokens=tokens,
        overrides=overrides or (),
    )
    measure.scale(
        recipe,
        prompt_tokens=prompt_tokens,
        axes=axis or list(Axis),
        doublings=doublings,
        breadth=measure.Breadth(wide, narrow, wide_prompt_tokens, wide_tokens or (64, 16)) if wide else None,
        repeats=repeats,
        path=json,
    )


@bench.command()
def waiting(
    model: Model = "small-aligned",
    prompts: Annotated[int, typer.Option(min=1, help="Problems of a batch.")] = 3,
    answers: Annotated[int, typer.Option(min=2, help="Answers to each of them: the group.")] = 8,
    oversample: Annotated[
        float, typer.Option(min=0, help="How much more than a batch is in flight, as a share of it.")
    ] = 1.0,
    slow: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Share of slow calls; may be given several times. Default: 0.25 and 0."),
    ] = None,
    scale: Annotated[float, typer.Option(min=0, help="Seconds slept for each second drawn.")] = 0.02,
    warmup: Warmup = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 10,
    json: Json = None,
) -> None:
    """Tools that take their time: batches of whole groups against batches of the answers that come first."""
    from anabranch.bench import waiting as measure

    asked = measure.Waiting(prompts, answers, oversample, tuple(slow or (0.25, 0.0)), scale)
    measure.waiting(model, asked, warmup=warmup, repeats=repeats, path=json)
