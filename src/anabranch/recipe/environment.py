"""What an answer may act on between its turns: a tool, or a world with a clock.

What each does, where the values come from and how failures are counted: docs/environments.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StrictFloat, StrictInt

from anabranch.recipe.part import Part


class PythonTool(Part):
    """A Python interpreter (SPO, arXiv:2509.13232): the script between `<code>` and `</code>` is run, and what it
    printed comes back between `<interpreter>` and `</interpreter>`. An answer without a script is final.

    Every script is run by a new process, which is killed with all that it started.
    """

    kind: Literal["python"] = "python"
    """A Python interpreter."""
    turns: StrictInt = Field(8, ge=1)
    """Most turns an answer, the last one included."""
    timeout: StrictFloat = Field(30.0, gt=0, le=3600)
    """Seconds of wall clock a script; then it is killed, and the model reads that."""
    memory_mb: StrictInt = Field(1024, ge=64)
    """Address space of every process of a script, in MiB."""
    output_chars: StrictInt = Field(256, ge=16, le=100_000)
    """Longest output that the model reads; a longer one loses its middle."""
    workers: StrictInt = Field(2, ge=1, le=1024)
    """Scripts run at the same time, over all answers; the others wait, and that wait is not counted as theirs."""


class Calculator(Part):
    """Exact arithmetic: the expression between `open` and `close` is worked out, and the answer goes on behind the
    result. Whole numbers, decimals and fractions; `+ - * / ^`, parentheses.

    An answer without `close` is final.
    """

    kind: Literal["calculator"] = "calculator"
    """A calculator."""
    turns: StrictInt = Field(16, ge=1)
    """Most turns an answer, the last one included."""
    open: str = "<calc>"
    """Stands before an expression. Empty: an expression is what stands before `close` and could be one, so that `=`
    as `close`, with reply ` {}`, fills in the results of a model that knows no tags."""
    close: str = Field("</calc>", min_length=1)
    """Ends an expression, and with it the turn."""
    reply: str = "<result>{}</result>"
    """What the model reads next; the result stands where `{}` is."""
    output_chars: StrictInt = Field(64, ge=16, le=10_000)
    """Longest result; a longer one is an error that the model reads."""


class Latency(Part):
    """A world that only takes time: every call really sleeps, and then the model goes on.

    How long is drawn from a mixture of two normal distributions, many fast calls and a few slow ones, from the key of
    the answer and the number of the call: the same answer always waits equally long. The defaults are a mixture that
    fits the figures of SPO's section 5.4, at a thousandth of their seconds; see docs/spo.md.
    """

    kind: Literal["latency"] = "latency"
    """A world that only takes time."""
    turns: StrictInt = Field(16, ge=1)
    """Most turns an answer, the last one included."""
    stop: str = "="
    """A turn ends with it, and calls; one without it is the last, and calls nothing. Empty: an answer has one turn, and
    calls when it ends by itself."""
    reply: str = Field(" ", min_length=1)
    """What the model reads after the wait. The default, a space after an equals sign, is what it would write itself."""
    mean: StrictFloat = Field(100.0, ge=0)
    """Mean of fast calls, in seconds before `scale`."""
    std: StrictFloat = Field(20.0, ge=0)
    """Standard deviation of fast calls, in seconds before `scale`."""
    slow_share: StrictFloat = Field(0.25, ge=0, le=1)
    """Chance that a call is a slow one."""
    slow_mean: StrictFloat = Field(480.0, ge=0)
    """Mean of slow calls, in seconds before `scale`."""
    slow_std: StrictFloat = Field(50.0, ge=0)
    """Standard deviation of slow calls, in seconds before `scale`."""
    floor: StrictFloat = Field(1.0, ge=0)
    """No call is shorter, in seconds before `scale`."""
    scale: StrictFloat = Field(0.001, gt=0, le=1)
    """Seconds slept for each second drawn."""


class Verifiers(Part):
    """An environment of the `verifiers` package, version 0.4 or newer (extra `verifiers`): its own loop, tools and
    rewards, with the model as one of its agents. Its problems are `data={kind: verifiers, taskset: NAME}`, and
    `options={taskset: {id: NAME}}` says the same.
    """

    kind: Literal["verifiers"] = "verifiers"
    """An environment of the `verifiers` package."""
    options: dict[str, JsonValue]
    """The package's `EnvConfig`: `taskset` with `id`, the name of the installed package that has the tasks, and its
    settings; perhaps `id`, an environment that plays them; and an entry for each agent, with `harness` and the like."""
    role: str = ""
    """Which agent the model is; empty: the only one. All others need a model and a client of their own."""
    turns: StrictInt = Field(8, ge=1)
    """Most turns of the model; behind the last the environment ends, and gives its reward."""
    seconds: StrictFloat = Field(60.0, gt=0)
    """Deadline of the environment for an answer to a turn, and for its start."""
    lowest: StrictFloat = 0.0
    """The sum of rewards that counts as 0. A lower one ends the rollout as failed."""
    highest: StrictFloat = 1.0
    """The sum of rewards that counts as 1; between both it is scaled. A higher one ends the rollout as failed."""
    output_chars: StrictInt = Field(4096, ge=16)
    """Longest message that the model reads; a longer one loses its middle."""


EnvironmentSettings = Annotated[PythonTool | Calculator | Latency | Verifiers, Field(discriminator="kind")]
