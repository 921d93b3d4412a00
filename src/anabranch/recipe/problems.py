"""What is asked, of which model, and how an answer is found: model, data, prompt, answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StrictFloat, StrictInt

from anabranch.recipe.part import Part

WORKED = ("chain_sum", "basic_arithmetic")
"""The reasoning-gym data sets for which worked examples can be made, so that a cold start is possible."""


class Model(Part):
    """Which model, and how it computes."""

    source: str = "smollm2-135m-instruct"
    """A built-in name (`smollm2-135m-instruct`), a local folder, or a Hugging Face id."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype of forward and backward; master weights are float32 always. auto: measured, the faster one."""
    device: str = "auto"
    """auto: `cuda` where there is one, otherwise `cpu`."""
    threads: StrictInt = Field(0, ge=0, le=4096)
    """CPU threads for tensor work; 0: the fastest of torch's own choice, half, a quarter of it and 1, measured for a
    moment. Fixed at the first start and kept on resume."""


class ReasoningGym(Part):
    """Problems made by `reasoning-gym`, judged by its own scorer."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    """Problems made by reasoning-gym."""
    name: str = "chain_sum"
    """Name of the data set within reasoning-gym."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of that data set, for instance `min_terms`."""
    size: StrictInt = Field(1000, ge=1)
    """How many problems to make."""
    seed: StrictInt = Field(0, ge=0, lt=2**32)
    """Which problems: the same seed makes the same ones."""


class JsonLines(Part):
    """Problems from a JSONL file, judged by mathematical equality."""

    kind: Literal["jsonl"] = "jsonl"
    """Problems from a file, one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this mark in the answer column (`####` in GSM8K's own files)."""
    limit: StrictInt | None = Field(None, ge=1)
    """Use only the first so many rows."""


class HubDataset(Part):
    """Problems from a Hugging Face data set by id (extra `datasets`), judged by mathematical equality."""

    kind: Literal["hub"] = "hub"
    """Problems from a Hugging Face data set."""
    id: str = Field(min_length=1)
    """Id of the data set, e.g. `openai/gsm8k`."""
    config: str | None = None
    """Configuration within the data set, e.g. `main`; None: its only one."""
    split: str = "train"
    """Which split."""
    revision: str | None = None
    """Commit or tag of the data set; None: the newest."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this mark in the answer column (`####` in GSM8K)."""
    limit: StrictInt | None = Field(None, ge=1)
    """Use only the first so many rows."""


class VerifiersTasks(Part):
    """Tasks of an environment of the `verifiers` package (extra `verifiers`), judged by the environment's own rewards:
    `environment={kind: verifiers, options: {taskset: {id: NAME}}}`.
    """

    kind: Literal["verifiers"] = "verifiers"
    """Tasks of an environment of the `verifiers` package."""
    taskset: str = Field(min_length=1)
    """Name of the installed package that has the tasks, as for `vf-eval`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of the taskset: those that say which tasks there are. How they are played: `environment.options`."""
    skip: StrictInt = Field(0, ge=0)
    """Leave out the first so many tasks."""
    limit: StrictInt | None = Field(None, ge=1)
    """Use only so many; None: all, of a taskset that ends."""


Data = Annotated[ReasoningGym | JsonLines | HubDataset | VerifiersTasks, Field(discriminator="kind")]


class Prompt(Part):
    """How a question becomes a chat prompt."""

    system: str | None = None
    """System message; None: the chat template's own default."""
    instruction: str = "Think step by step, then finish with a line of the form 'Answer: N'."
    """Added after the question, on a line of its own. Empty: nothing."""


class Answer(Part):
    """How a final answer is found in the model's text and compared with the gold answer."""

    extract: tuple[Literal["boxed", "answer_line", "hashes", "tag", "last_number"], ...] = Field(
        ("boxed", "answer_line", "hashes"), min_length=1
    )
    """Tried in this order; the first that finds something decides. `tag` reads `<answer>...</answer>`, also over
    several lines. `last_number` is lenient and off by default."""
    timeout: StrictFloat = Field(5.0, gt=0)
    """Seconds of wall clock for one verdict; then the worker is killed and the answer counts as wrong."""
    workers: StrictInt = Field(1, ge=1)
    """Processes that judge answers."""
