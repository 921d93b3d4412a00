"""What is measured, built from the parts that a run uses, in the way that a run uses them.

    recipe --load_*--> model, engine, optimizer --problems, requests--> prompts --sample--> answers --rl_step--> record

Answers have a forced length (no stop token), so that every run does the same work. Letters: B answers of a step.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import DataError, RecipeError, explain
from anabranch.modeling.devices import choose_device, choose_dtype, full_determinism, return_free_memory, settle
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.load import load_tokenizer
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem, Reason, Request, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.sampling import uniform
from anabranch.tasks.base import problem_key
from anabranch.tracking.display import PlainDisplay
from anabranch.train.clock import Clock
from anabranch.train.experience import experience_of
from anabranch.train.measure import Record, rl_record
from anabranch.train.optimizer import MasterOptimizer, learning_rate
from anabranch.train.rl import learn, prepare
from anabranch.train.session import Learner
from anabranch.train.state import RunState

HONOURED = (
    "model",
    "engine",
    "train",
    "optim",
    "algorithm",
    "prompt",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.top_k",
    "seed",
)
"""What a benchmark can be told beside its sizes, as keys of a recipe; it has problems, rewards and stops of its own."""

FILLERS = (" and", " so", " on", " then", "7", ".", " a")
"""Tried in this order to make a prompt longer by one token: words known to most tokenizers; a digit or a dot to all."""

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jan", "Kim", "Lea", "Max", "Nora", "Otto")
THINGS = ("apples", "books", "coins", "eggs", "keys", "lamps", "maps", "nuts", "pens", "plums", "stamps", "tickets")
DEEDS = ("buys", "finds", "gives away", "loses", "sells", "wins")


def bench_recipe(
    *,
    model: str = "smollm2-135m-instruct",
    dtype: str = "auto",
    threads: int = 0,
    prompts: int = 8,
    answers: int = 8,
    tokens: int = 64,
    overrides: Sequence[str] = (),
) -> Recipe:
    """GRPO without a KL term, one optimizer step a batch, with the sizes that are to be measured.

    Args:
        model: built-in name, folder or Hugging Face id.
        dtype: auto, bfloat16 or float32.
        threads: CPU threads; 0: measured, see `model.threads`.
        prompts: problems a step.
        answers: answers a problem.
        tokens: new tokens an answer, exactly.
        overrides: `KEY=VALUE`, of the keys in `HONOURED`.

    Raises:
        RecipeError: a key that a benchmark would not honour, or settings that cannot work.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == honoured or key.startswith(f"{honoured}.") for honoured in HONOURED):
            need = f"a benchmark can be told {', '.join(HONOURED)}"
            raise RecipeError(explain(f"override {override!r}", "a setting that changes nothing", need, "leave it out"))
    sizes = (
        f"model.source={inline(model)}",
        f"model.dtype={inline(dtype)}",
        f"model.threads={threads}",
        f"rollout.prompts={prompts}",
        f"rollout.per_problem={answers}",
        f"rollout.max_new_tokens={tokens}",
        # Generation alone may well be asked for a single answer, which has nothing to be compared with.
        *(["algorithm.baseline=none", "algorithm.scale=none"] if answers == 1 else []),
    )
    recipe = apply(load("grpo"), ["name=bench", "algorithm.kl={kind: none}", *sizes, *overrides])
    for name, kind, need in (
        ("kl", recipe.algorithm.kl.kind, "no reference model is loaded"),
        ("overlong", recipe.algorithm.overlong.kind, "every answer has the full length"),
    ):
        if kind != "none":
            raise RecipeError(explain(f"algorithm.{name}.kind", kind, need, f"algorithm.{name}.kind=none"))
    if recipe.tracks:
        need = "a benchmark has no run in which values could be kept"
        raise RecipeError(explain("algorithm.baseline", "tracker", need, "algorithm.baseline=none"))
    return recipe


# -------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Answerer:
    """A model that answers, without what training needs."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    engine: TorchEngine
    asker: Asker


def load_answerer(recipe: Recipe) -> Answerer:
    """Everything that generation needs, loaded as a run loads it. Sets the process's threads and determinism.

    Raises:
        AnabranchError: the model cannot be loaded, no such device, ...
    """
    recipe = recipe.but(model=settle(recipe.model))
    full_determinism()
    device = choose_device(recipe.model.device)
    tokenizer = load_tokenizer(recipe.model.source)
    model = load_streaming(recipe.model.source, choose_dtype(recipe.model.dtype, device), device)
    engine = TorchEngine(model, tokenizer, max_rows=recipe.engine.max_rows, kv_gb=recipe.engine.kv_gb)
    return Answerer(recipe, tokenizer, model, engine, Asker(recipe, tokenizer, model))


def load_learner(recipe: Recipe) -> Learner:
    """Everything that a step needs, loaded as a run loads it: `load_answerer` and the optimizer with its masters.

    Raises:
        AnabranchError: see `load_answerer`.
    """
    parts = load_answerer(recipe)
    return Learner(
        recipe=parts.recipe,
        display=PlainDisplay(sys.stderr),
        tokenizer=parts.tokenizer,
        model=parts.model,
        optimizer=MasterOptimizer(parts.model, parts.recipe.optim),
        engine=parts.engine,
    )


# -------------------------------------------------------------------------------------------------------- prompts


def word_problems(asker: Asker, count: int, prompt_tokens: int) -> list[Problem]:
    """Different word problems whose prompts, chat template included, have exactly so many tokens.

    Made from nothing but their number, so that every process makes the same ones.

    Raises:
        DataError: the length is too short for the template and a question, or the tokenizer cannot meet it exactly.
    """
    return [_word_problem(asker, number, prompt_tokens) for number in range(count)]


def _word_problem(asker: Asker, number: int, prompt_tokens: int) -> Problem:
    facts = _facts(random.Random(number))
    opening = f"{number + 1}. "
    ending = " How many are left?"

    def problem(middle: str) -> Problem:
        question = f"{opening}{middle}.{ending}"
        return Problem(key=problem_key(question), question=question, answer="", source="bench")

    def length(middle: str) -> int:
        return len(asker.prompt_tokens(problem(middle)))

    middle = next(facts)
    have = length(middle)
    if have > prompt_tokens:
        raise DataError(
            explain("prompt tokens", prompt_tokens, f"the shortest prompt has {have}", f"--prompt-tokens {have}")
        )
    while (longer := length(f"{middle}. {(fact := next(facts))}")) <= prompt_tokens:
        middle, have = f"{middle}. {fact}", longer
    while have < prompt_tokens:
        longer_by_one = (f"{middle}{filler}" for filler in FILLERS)
        found = next((text for text in longer_by_one if length(text) == have + 1), None)
        if found is None:
            fix = f"--prompt-tokens {have}"
            raise DataError(explain("prompt tokens", prompt_tokens, "no filler of one token was found", fix))
        middle, have = found, have + 1
    return problem(middle)


def _facts(chance: random.Random) -> Iterator[str]:
    """Endless: `Ada finds 17 plums`."""
    while True:
        yield f"{chance.choice(NAMES)} {chance.choice(DEEDS)} {chance.randint(2, 99)} {chance.choice(THINGS)}"


def forced(requests: Sequence[Request]) -> list[Request]:
    """The requests without anything that ends an answer before its full length."""
    return [
        replace(request, sampling=replace(request.sampling, stop_tokens=(), stop_strings=())) for request in requests
    ]


def forced_requests(asker: Asker, problems: Sequence[Problem], answers: int, step: int = 0) -> list[Request]:
    """One request a problem for so many answers of exactly `rollout.max_new_tokens` tokens.

    Args:
        asker: of a loaded model.
        problems: of `word_problems`.
        answers: to each.
        step: another step draws other tokens.
    """
    return forced(asker.requests(problems, answers, step))


def sample(engine: TorchEngine, requests: Sequence[Request]) -> list[Rollout]:
    """All answers, sorted by request, then by sample."""
    place = {request.problem_key: index for index, request in enumerate(requests)}
    return sorted(engine.generate(requests), key=lambda rollout: (place[rollout.problem_key], rollout.sample))


def made_up_answers(requests: Sequence[Request], vocabulary: int) -> list[Rollout]:
    """Answers of random tokens, for measuring training without generation; sorted as by `sample`."""
    found = []
    for request in requests:
        chance = np.random.default_rng(zlib.crc32(request.problem_key.encode()))
        size = request.sampling.max_new_tokens
        prompt = Segment(np.array(request.prompt_tokens))
        for number in range(request.num_samples):
            answer = Segment(
                tokens=chance.integers(0, vocabulary, size, dtype=np.int32),
                parents=(0,),
                trained=np.ones(size, dtype=np.bool_),
                engine_logprob=np.full(size, -1.0, dtype=np.float32),
                policy_version=np.zeros(size, dtype=np.int32),
            )
            graph = StreamGraph((prompt, answer))
            found.append(Rollout(request.problem_key, request.first_sample + number, graph, "", StopReason.LENGTH))
    return found


# ----------------------------------------------------------------------------------------------------------- steps


def group_rewards(answers: Sequence[Sequence[int]]) -> list[float]:
    """Rewards of the answers to one problem, from their token ids: 1 to one half of them, 0.5 to the other.

    The half with the larger checksums gets 1 (ties go by place; of an odd number the larger half gets 1). It stands in
    for a judge: it costs next to nothing, does not depend on the machine, and no group of two or more agrees, so that
    no answer has advantage 0, with or without a baseline, and none is skipped in training. Nothing is learned from it.
    """
    sums = [zlib.crc32(",".join(map(str, tokens)).encode()) for tokens in answers]
    order = sorted(range(len(answers)), key=lambda index: (sums[index], index))
    rewards = [0.5] * len(answers)
    for index in order[len(answers) // 2 :]:
        rewards[index] = 1.0
    return rewards


def judged(rollouts: Sequence[Rollout], per_problem: int) -> list[Score]:
    """The scores of all answers of a step, by `group_rewards`."""
    scores = []
    for start in range(0, len(rollouts), per_problem):
        group = rollouts[start : start + per_problem]
        for reward in group_rewards([rollout.graph.segments[-1].tokens.tolist() for rollout in group]):
            verdict = Verdict(reward, Reason.CORRECT if reward == 1 else Reason.PARTIAL)
            scores.append(Score(reward, {"accuracy": reward}, verdict))
    return scores


def on_policy_step(learner: Learner, problems: Sequence[Problem], step: int) -> Record:
    """One RL step as `train.rl.rl_step` makes it, with the very functions that it uses, on `group_rewards`.

    Left out: drawing problems, the judge, the probe of the first step, and what is written to the run folder.

    Args:
        learner: its weights are changed.
        problems: `rollout.prompts` of them.
        step: counted from 0; another step draws other tokens.

    Returns:
        The record that a run would write to `metrics.jsonl`.
    """
    return_free_memory()
    clock = Clock()
    settings, state = learner.recipe.rollout, _state(step)
    learner.engine.load_weights(state.version)
    rollouts = sample(learner.engine, forced_requests(learner.asker, problems, settings.per_problem, step))
    experience = experience_of(problems, rollouts, judged(rollouts, settings.per_problem))
    learner.engine.rest()
    return_free_memory()
    lesson = prepare(learner, experience, clock)
    lr = learning_rate(learner.recipe.optim, step, learner.recipe.steps)
    updates = learn(learner, lesson, lr, clock)
    return rl_record(learner.recipe, state, experience, lesson, updates, lr, learner.engine.times, clock)


def _state(step: int) -> RunState:
    return RunState(
        stage=0, step=step, total=step, version=step, sampler=uniform.init(1, 0), barren=-1, seconds=0.0, data=""
    )
