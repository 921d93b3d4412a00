"""One supervised step: mean negative log-prob of the trained tokens of a batch of worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from anabranch.batching.pack import Row, flat_offsets, pack, packed_tokens
from anabranch.engines.requests import TEMPLATE_MARGIN
from anabranch.errors import DataError, explain
from anabranch.modeling.load import context_length
from anabranch.records import Problem, Segment, StreamGraph
from anabranch.sampling.uniform import UniformState, draw
from anabranch.tracking.memory import peak_rss_mb
from anabranch.tracking.rollouts import RolloutRecord
from anabranch.train.clock import Clock
from anabranch.train.session import Session
from anabranch.train.state import RunState
from anabranch.train.trainer import update


@dataclass(frozen=True)
class Example:
    """A problem with a worked answer to learn."""

    problem: Problem
    solution: str


def example_graph(session: Session, example: Example) -> StreamGraph:
    """Prompt -> answer, every answer token trained, the end of the answer too."""
    answer = session.tokenizer(example.solution, add_special_tokens=False)["input_ids"]
    session.asker.check_known(answer, f"example {example.problem.key}")
    tokens = np.array([*answer, *session.end_of_answer])
    prompt = Segment(np.array(session.asker.prompt_tokens(example.problem)))
    return StreamGraph((prompt, Segment(tokens, parents=(0,), trained=np.ones(len(tokens), dtype=np.bool_))))


def check_lengths(session: Session, examples: Sequence[Example]) -> None:
    """No example may be longer than the context. Bytes bound tokens, so that only suspects are encoded.

    Raises:
        DataError: one is; names it.
    """
    limit = context_length(session.model)
    template = max((len(session.asker.prompt_tokens(each.problem)) for each in examples[:1]), default=0)
    for example in examples:
        text = f"{example.problem.question}{example.solution}"
        if len(text.encode("utf-8", "surrogatepass")) + template + TEMPLATE_MARGIN <= limit:
            continue
        length = example_graph(session, example).num_tokens
        if length > limit:
            where = f"example {example.problem.key} ({example.problem.question[:60]!r})"
            need = f"the context holds {limit}"
            raise DataError(explain(where, f"{length} tokens", need, "shorten or remove it, or take another model"))


def supervised_step(
    session: Session, state: RunState, lr: float, *, examples: Sequence[Example], stage: str, batch: int
) -> tuple[RunState, dict[str, object], list[RolloutRecord]]:
    """One optimizer step on the next `batch` examples; returns the new state, the step's record, and no answers."""
    clock = Clock()
    with clock.phase("pack"):
        assert isinstance(state.sampler, UniformState)  # only RL draws by value
        indices, sampler = draw(state.sampler, batch)
        chosen = [examples[index] for index in indices]
        graphs = [example_graph(session, example) for example in chosen]
        num_tokens = int(flat_offsets(graphs)[-1])
        groups = list(range(len(graphs)))
        rows = pack(graphs, groups, row_tokens=session.recipe.train.row_tokens)

    def objective(row: Row, logprob_M: Tensor, entropy_M: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -logprob_M.sum() / num_tokens, {}

    session.display.phase("training")
    done = update(session.model, session.optimizer, rows, objective, num_tokens, lr=lr, temperature=1.0, clock=clock)
    session.engine.load_weights(state.version + 1)
    record: dict[str, object] = {
        "step": state.step + 1,
        "stage": stage,
        "policy_version": state.version,
        "loss": done.loss,
        "entropy": done.entropy_sum / num_tokens,
        "grad_norm": done.grad_norm,
        "lr": lr,
        "trained_tokens": num_tokens,
        "packed_tokens": packed_tokens(rows),
        "prompt_tokens": sum(len(graph.segments[0]) for graph in graphs),
        **clock.times(),
        "time/step": clock.elapsed,
        "tokens_per_second": num_tokens / clock.elapsed,
        "memory_peak_mb": peak_rss_mb(),
    }
    after = replace(state, step=state.step + 1, total=state.total + 1, version=state.version + 1, sampler=sampler)
    return after, record, []
