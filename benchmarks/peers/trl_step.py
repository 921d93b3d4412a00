"""TRL's side of the GRPO step: its own `GRPOTrainer.train()`, let go one optimizer step at a time.

`train()` runs unchanged, on the main thread. A callback holds it where a step begins, so that between one hold and the
next everything happens that Trainer does in a step: generation, rewards, advantages, forward, loss, backward, clipping,
optimizer, scheduler, zeroing of gradients, callbacks, and fetching the prompts of the next step. Only logging, saving,
progress bars and telemetry are switched off.

A run's arguments: `tokens`, new tokens of this step where they differ from the settings' (to warm up quickly; not
with `compile`, which compiles for every length), and
`save_gradients`, a file for the gradients just before the optimizer.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.step_task import PROBLEMS, Size, conversation, fingerprint, reward
from benchmarks.worker import serve

_MANY = 1_000_000
"""Optimizer steps that `train()` is asked for: more than anybody waits for."""


@dataclass(frozen=True)
class Settings:
    """What a trainer is built from."""

    model: str
    """Folder of the model, perhaps below `~`."""
    prompts: int
    answers: int
    tokens: int
    threads: int
    dtype: str = "float32"
    """Of the weights, and of all that is computed unless `autocast`."""
    autocast: bool = False
    """`bf16=True`: matrix products in bfloat16 whatever the weights are."""
    micro_batch: int = 16
    """`per_device_train_batch_size`; gradients of a step gather over as many micro-batches as it takes."""
    attention: str = "sdpa"
    cache: str | None = None
    """`cache_implementation` of generation."""
    continuous: bool = False
    """`use_transformers_continuous_batching`."""
    compile: bool = False
    """`torch_compile`."""
    max_grad_norm: float = 1.0
    rollouts: str | None = None
    """A JSON file of answers (see `benchmarks.replay`) that stand in for generation."""

    @classmethod
    def read(cls, given: dict[str, Any]) -> Settings:
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings: {sorted(unknown)}")
        return cls(**given)


class Held:
    """A trainer on the main thread that takes a step whenever the serving thread asks for one."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._error: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.seconds: dict[str, float] = defaultdict(float)
        """Of the step that runs, by TRL's names of what it profiles."""
        self.save_to: str | None = None
        """Where the gradients of the step that runs go."""
        self.trainer: Any = None

    # ------------------------------------------------------------------------------------- on the serving thread

    def prepare(self, given: dict[str, Any]) -> Any:
        self._settings = settings = Settings.read(given)
        self._go.release()
        self._wait()
        problems = [conversation(problem) for problem in PROBLEMS[: settings.prompts]]
        prompts = fingerprint(self.trainer._tokenize_prompts(problems)[0])

        def run(arguments: dict[str, Any]) -> dict[str, Any]:
            self.save_to = arguments.get("save_gradients")
            tokens = settings.tokens if settings.compile else arguments.get("tokens", settings.tokens)
            generation = self.trainer.generation_config
            generation.min_new_tokens = generation.max_new_tokens = tokens
            self.seconds.clear()
            start = time.perf_counter()
            self._go.release()
            self._wait()
            seconds = time.perf_counter() - start
            return {
                "work": settings.prompts * settings.answers,
                "seconds": seconds,
                "phases": _phases(self.seconds, seconds),
                "prompts": prompts,
            }

        return run

    def _wait(self) -> None:
        self._arrived.acquire()
        if self._error is not None:
            raise self._error

    # ---------------------------------------------------------------------------------------- on the main thread

    def hold(self) -> None:
        """Called where a step begins."""
        self._arrived.release()
        self._go.acquire()

    def train(self) -> None:
        """Build a trainer when the settings have come, and train until the process ends."""
        self._go.acquire()
        assert self._settings is not None
        try:
            self.trainer = build(self._settings, self)
            self.trainer.train()
            raise RuntimeError(f"train() ended after {_MANY} steps")
        except BaseException as error:  # noqa: BLE001  (boundary: the serving thread raises it again)
            self._error = error
            self._arrived.release()


def build(settings: Settings, held: Held) -> Any:
    """A `GRPOTrainer` whose steps are held."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer
    from trl.extras.profiling import ProfilingContext

    torch.set_num_threads(settings.threads)
    logging.set_verbosity_error()
    size = Size(settings.prompts, settings.answers, settings.tokens)
    if size.samples % settings.micro_batch:
        raise ValueError(f"{size.samples} samples do not divide into micro-batches of {settings.micro_batch}")
    config = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        use_cpu=True,
        max_steps=_MANY,
        num_generations=size.answers,
        max_completion_length=size.tokens,
        generation_kwargs={"min_new_tokens": size.tokens},
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=size.samples // settings.micro_batch,  # and so one step a generation batch
        num_iterations=1,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        epsilon=0.2,
        scale_rewards="group",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.autocast,
        model_init_kwargs={"dtype": settings.dtype, "attn_implementation": settings.attention},
        cache_implementation=settings.cache,
        use_transformers_continuous_batching=settings.continuous,
        torch_compile=settings.compile,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    problems = [conversation(problem) for problem in PROBLEMS[: size.prompts]]
    trainer = GRPOTrainer(
        model=os.path.expanduser(settings.model),  # noqa: PTH111  (TRL takes a string)
        reward_funcs=_reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": problems * 1000}),  # an epoch of 1000 steps, each on the same
        callbacks=[_gate(held)],
        rollout_func=None if settings.rollouts is None else _replayed(settings.rollouts),
    )
    trainer.remove_callback(PrinterCallback)

    def note(self: Any, duration: float) -> None:
        held.seconds[self.name.rpartition("Trainer.")[2]] += duration

    ProfilingContext._log_metrics = note  # TRL times these parts itself, and tells only trackers
    return trainer


def _reward(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward(answer) for answer in completion_ids]


def _replayed(path: str) -> Any:
    """A `rollout_func` that hands out stored answers."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        stored = json.load(file)
    prompts = [row["prompt"] for row in stored["rollouts"]]
    answers = [row["answer"] for row in stored["rollouts"]]

    def rollouts(asked: list[Any], trainer: Any) -> dict[str, Any]:
        if len(asked) != len(answers):
            raise ValueError(f"{path}: {len(answers)} answers are stored, a step needs {len(asked)}")
        return {"prompt_ids": prompts, "completion_ids": answers, "logprobs": None}

    return rollouts


def _gate(held: Held) -> Any:
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        """Holds the trainer before each step, times the optimizer, and saves gradients if asked to."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            held.hold()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if held.save_to is not None:
                from safetensors.torch import save_file

                gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
                save_file(gradients, held.save_to)
            self._start = time.perf_counter()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            held.seconds["optimizer"] += time.perf_counter() - self._start

    return Gate()


def _phases(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Seconds of the parts of a step, from what TRL's profiler saw.

    Its `_prepare_inputs` holds generation and rewards; its `compute_loss` is the forward pass. What is left of the
    whole is the backward pass, clipping, and little else.
    """
    generate = seconds["transformers.generate"] + seconds["transformers.generate_batch"]
    parts = {
        "generate": generate,
        "reward": seconds["_calculate_rewards"],
        "prepare": seconds["_prepare_inputs"] - generate - seconds["_calculate_rewards"],
        "forward": seconds["compute_loss"],
        "optimizer": seconds["optimizer"],
    }
    return {**parts, "backward_and_rest": whole - sum(parts.values())}


def main() -> None:
    """Serve from a second thread: the first belongs to the trainer, as it does wherever TRL is used."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    held = Held()

    def serving() -> None:
        code = 1
        try:
            serve(held.prepare)
            code = 0
        except BaseException:  # noqa: BLE001  (boundary: a thread's error would not end the process)
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)

    threading.Thread(target=serving).start()
    held.train()
    threading.Event().wait()  # until the serving thread ends the process


if __name__ == "__main__":
    main()
