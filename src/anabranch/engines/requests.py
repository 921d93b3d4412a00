"""From problems to requests: how a recipe's prompt, sampling and seed reach an engine. For training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.environments.base import World
from anabranch.errors import DataError, ModelError, explain
from anabranch.modeling.load import context_length, encode_chat, stop_token_ids
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem, Request, Sampling
from anabranch.tasks.prompts import messages

TEMPLATE_MARGIN = 64
"""Tokens by which the chat template may add more to one problem than to another."""


class Asker:
    """Asks a model problems in the way that a recipe says.

    Args:
        recipe: its prompt, rollout settings and seed.
        tokenizer: of the model.
        model: for its stop tokens and the length of its context.
        world: that answers act in; None: the model writes an answer in one go.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        world: World | None = None,
    ) -> None:
        self._recipe = recipe
        self._world = world
        self._tokenizer = tokenizer
        self._context = context_length(model)
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        rollout = recipe.rollout
        self.sampling = Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_new_tokens=rollout.max_new_tokens,
            stop_tokens=stop_token_ids(tokenizer, model),
            stop_strings=rollout.stop_strings + (() if world is None else world.stop_strings),
        )
        self._prompts: dict[str, tuple[int, ...]] = {}

    def prompt_tokens(self, problem: Problem) -> tuple[int, ...]:
        """The problem as the model reads it. Raises ModelError as `check_known`."""
        if problem.key not in self._prompts:
            about = "" if self._world is None else self._world.instruction
            tokens = tuple(encode_chat(self._tokenizer, messages(problem, self._recipe.prompt, about)))
            self.check_known(tokens, f"prompt of problem {problem.key}")
            self._prompts[problem.key] = tokens
        return self._prompts[problem.key]

    def check_known(self, tokens: Sequence[int], where: str) -> None:
        """Every token has an embedding.

        Raises:
            ModelError: one has none: the tokenizer is of another model, or tokens were added to it alone.
        """
        if tokens and max(tokens) >= self._vocabulary:
            found = f"token {max(tokens)} ({self._tokenizer.convert_ids_to_tokens(int(max(tokens)))!r})"
            need = f"the model has embeddings for {self._vocabulary} tokens"
            raise ModelError(explain(where, found, need, "use the tokenizer that belongs to the model"))

    def requests(self, problems: Sequence[Problem], samples: int, step: int) -> list[Request]:
        """One request a problem; one that occurs again gets the next sample numbers, so no answer is drawn twice."""
        seen: dict[str, int] = {}
        requests = []
        for problem in problems:
            first = seen.get(problem.key, 0)
            seen[problem.key] = first + samples
            requests.append(
                Request(
                    problem_key=problem.key,
                    prompt_tokens=self.prompt_tokens(problem),
                    num_samples=samples,
                    sampling=self.sampling,
                    seed=self._recipe.seed,
                    step=step,
                    first_sample=first,
                    hold=self._world is not None,
                )
            )
        return requests

    def check(self, problems: Sequence[Problem]) -> None:
        """No prompt may be too long for the context. Bytes bound tokens, so that only suspects are encoded.

        Raises:
            DataError: one is; names the problem.
        """
        limit = self._context - self.sampling.max_new_tokens
        template = len(self.prompt_tokens(problems[0])) + TEMPLATE_MARGIN
        for problem in problems:
            if len(problem.question.encode("utf-8", "surrogatepass")) + template <= limit:
                continue
            length = len(self.prompt_tokens(problem))
            if length > limit:
                raise DataError(
                    explain(
                        f"problem {problem.key} ({problem.question[:60]!r})",
                        f"a prompt of {length} tokens",
                        f"the context of {self._context} leaves {limit} beside rollout.max_new_tokens="
                        f"{self.sampling.max_new_tokens}",
                        "remove the problem, lower rollout.max_new_tokens, or take a model with a longer context",
                    )
                )
