"""What all stages of a run share: model, optimizer, engine, task, judge, and the folder that they write to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.torch_engine import TorchEngine
from anabranch.modeling.devices import choose_device, choose_dtype, set_threads
from anabranch.modeling.load import encode_chat, stop_token_ids
from anabranch.recipe.tree import Model, Recipe
from anabranch.records import Problem, Request, Rollout, Sampling, Verdict
from anabranch.tasks.base import Task
from anabranch.tasks.judge import Judge
from anabranch.tasks.prompts import messages
from anabranch.tracking.display import Display
from anabranch.tracking.run_folder import RunFolder
from anabranch.train.clock import Clock
from anabranch.train.optimizer import MasterOptimizer


def settle(model: Model) -> Model:
    """The model part with nothing left to measure: device, dtype and threads as they will be, now and on resume."""
    device = choose_device(model.device)
    threads = set_threads(model.threads)
    dtype = choose_dtype(model.dtype, device)
    settled = {"device": str(device), "threads": threads, "dtype": str(dtype).removeprefix("torch.")}
    return Model.model_validate({**model.model_dump(), **settled})


@dataclass
class Session:
    """One run in this process."""

    recipe: Recipe
    folder: RunFolder
    display: Display
    task: Task
    data_hash: str
    """Of the identities of all problems, see `RunState.data`."""
    held_out: tuple[Problem, ...]
    judge: Judge
    held_judge: Judge
    """Of the held-out problems; the same unless they come from other data."""
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    optimizer: MasterOptimizer
    engine: TorchEngine
    reference: PreTrainedModel | None = None
    """Frozen weights of the start of RL; only where the algorithm has a KL term."""
    pending_times: dict[str, float] = field(default_factory=dict)
    """Seconds of saving and evaluating, for the next step's record."""
    probed: bool = False
    """Whether engine and trainer were compared in this process."""
    _prompts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def sampling(self) -> Sampling:
        """How training answers are drawn."""
        rollout = self.recipe.rollout
        return Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_new_tokens=rollout.max_new_tokens,
            stop_tokens=stop_token_ids(self.tokenizer, self.model),
            stop_strings=rollout.stop_strings,
        )

    @property
    def end_of_answer(self) -> tuple[int, ...]:
        """What supervised answers end with: the tokenizer's eos."""
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    def prompt_tokens(self, problem: Problem) -> tuple[int, ...]:
        """The problem as the model reads it."""
        if problem.key not in self._prompts:
            self._prompts[problem.key] = tuple(encode_chat(self.tokenizer, messages(problem, self.recipe.prompt)))
        return self._prompts[problem.key]

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
                    seed=self.recipe.seed,
                    step=step,
                    first_sample=first,
                )
            )
        return requests

    def answers(
        self, problems: Sequence[Problem], requests: Sequence[Request], judge: Judge, clock: Clock
    ) -> tuple[list[Rollout], list[Verdict]]:
        """Sample all requests and judge every answer as it finishes; sorted by request, then by sample.

        `problems[i]` belongs to `requests[i]`.
        """
        place = {
            (request.problem_key, request.first_sample + sample): (index, sample)
            for index, request in enumerate(requests)
            for sample in range(request.num_samples)
        }
        total = len(place)
        found: list[tuple[tuple[int, int], Rollout, Future[Verdict]]] = []
        self.display.phase(f"generating 0/{total}")
        for rollout in self.engine.generate(requests):
            where = place[rollout.problem_key, rollout.sample]
            found.append((where, rollout, judge.submit(problems[where[0]], rollout.text)))
            self.display.phase(f"generating {len(found)}/{total}")
        found.sort(key=lambda item: item[0])
        self.display.phase("judging")
        with clock.phase("judge"):
            verdicts = [future.result() for _, _, future in found]
        return [rollout for _, rollout, _ in found], verdicts
