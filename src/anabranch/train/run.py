"""Start a run, or go on with one: everything is checked and opened in an order in which mistakes cost nothing.

Data first (a missing file needs no model), then the run folder, the judge and the gold answers, then the model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from anabranch.engines.opening import environments
from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import AnabranchError, DataError, RunFolderError, explain
from anabranch.evaluation import offline
from anabranch.evaluation.held_out import held_out_problems
from anabranch.evaluation.offline import OfflineValues
from anabranch.modeling.devices import choose_device, choose_dtype, full_determinism, set_threads, settle
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.load import load_tokenizer, prepare
from anabranch.recipe.io import from_yaml, to_yaml
from anabranch.recipe.tree import Recipe, Sft
from anabranch.records import Problem
from anabranch.tasks.base import Task, open_task, problem_key
from anabranch.tasks.judge import Judge
from anabranch.tasks.solutions import read_solutions
from anabranch.tasks.worked import worked_answer
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.curriculum import curriculum_svg
from anabranch.tracking.curve import curve_svg
from anabranch.tracking.display import make_display
from anabranch.tracking.files import write_atomic
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.run_folder import RunFolder
from anabranch.tracking.summary import summary_table
from anabranch.train import checkpoint, loop, probes
from anabranch.train.optimizer import MasterOptimizer
from anabranch.train.session import Session
from anabranch.train.state import RunState, check_same_data
from anabranch.train.supervised import Example, check_lengths


def start(recipe: Recipe, path: Path) -> None:
    """Train from the beginning, in a new run folder.

    Raises:
        AnabranchError: a mistake in the recipe, the data or the model, a probe that failed, a full disk, ...
    """
    data = _RunData(recipe, fresh=True)
    recipe = recipe.model_copy(update={"model": settle(recipe.model)})
    with RunFolder.create(path, to_yaml(recipe), recipe.name) as folder:
        try:
            _run(recipe, data, folder, None)
        except AnabranchError:
            folder.withdraw()  # a mistake found before anything happened leaves no run behind
            raise


def resume(path: Path, steps: int | None, seconds: float | None = None) -> None:
    """Go on from the last checkpoint, or from the beginning if there is none yet.

    Args:
        path: the run folder.
        steps: RL steps in all, instead of the recipe's; written into the run's recipe.
        seconds: of RL in all, instead of the recipe's; written into the run's recipe.

    Raises:
        AnabranchError: as `start`; or nothing is left to do, or a checkpoint is damaged.
    """
    with RunFolder.open(path) as folder:
        recipe = from_yaml(folder.recipe_yaml())
        found = checkpoint.latest(folder.paths.checkpoints)
        longer = _longer(recipe, steps, seconds)
        data = _RunData(longer, fresh=found is None)
        if found is not None:
            check_same_data(found.state, data.hash)
        if longer != recipe:
            write_atomic(folder.paths.recipe, to_yaml(longer))
        folder.cut_logs(found.log_sizes if found else None)
        set_threads(longer.model.threads)
        _run(longer, data, folder, found)


def _longer(recipe: Recipe, steps: int | None, seconds: float | None) -> Recipe:
    """The recipe of a run that is to go on further.

    Raises:
        RunFolderError: fewer steps or seconds than it is set to, or a limit of time for a run that has none.
    """
    limits = (("steps", steps, recipe.steps), ("seconds", seconds, recipe.seconds or math.inf))
    for name, asked, limit in limits:
        if asked is not None and asked < limit:
            need = f"the run is set to {limit:g}; it can only go on further"
            fix = "a larger number" if math.isfinite(limit) else f"leave out --{name}"
            raise RunFolderError(explain(f"--{name}", asked, need, fix))
    changes = {"steps": steps, "seconds": seconds}
    return recipe.but(**{name: value for name, value in changes.items() if value is not None})


class _RunData:
    """Problems and examples of a run, all read and checked.

    Args:
        recipe: what is read.
        fresh: from the beginning, so that offline values are needed; a checkpoint has its own.

    Raises:
        DataError: something cannot be read, or there are too few held-out problems.
    """

    def __init__(self, recipe: Recipe, *, fresh: bool) -> None:
        self.task = self.held_task = open_task(recipe.data, recipe.answer)
        self.held_out: tuple[Problem, ...] = ()
        if recipe.evaluation is not None:
            self.held_task, self.held_out = held_out_problems(recipe, self.task)
            self.task = _without(self.task, self.held_out)
            if recipe.evaluation.data is None:
                self.held_task = self.task
        self.offline = _offline_values(recipe, self.task) if fresh else None
        self.cold = [Example(p, worked_answer(p)) for p in self.task.problems] if recipe.cold_start else []
        self.file = _examples(recipe.sft, self.held_out) if recipe.sft else []
        keys = [problem.key for problem in (*self.task.problems, *self.held_out)]
        self.hash = problem_key(*keys, *(example.solution for example in (*self.cold, *self.file)))


def _offline_values(recipe: Recipe, task: Task) -> OfflineValues | None:
    """Where tracked values start, if the recipe names a file.

    Raises:
        DataError: it is no such file, or belongs to other problems.
    """
    path = recipe.algorithm.tracker.values
    if path is None or not recipe.tracks:
        return None
    found = offline.read(path)
    found.check_problems(recipe, task.problems)
    return found


def _without(task: Task, held_out: Sequence[Problem]) -> Task:
    """The task without problems that are held out: what is evaluated is never trained on.

    Raises:
        DataError: nothing is left to train on.
    """
    held = {problem.key for problem in held_out}
    kept = tuple(problem for problem in task.problems if problem.key not in held)
    if not kept:
        found = f"all {len(task.problems)} training problems among the held-out ones"
        raise DataError(explain("evaluation.data", found, "they must differ", "name other data, or evaluation=null"))
    return replace(task, problems=kept)


def _examples(sft: Sft, held_out: Sequence[Problem]) -> list[Example]:
    """The examples of a file, without questions that are held out.

    Raises:
        DataError: the file cannot be read, or no example is left.
    """
    held = {problem.question for problem in held_out}
    found = [Example(problem, text) for problem, text in read_solutions(sft)]
    kept = [example for example in found if example.problem.question not in held]
    if not kept:
        text = f"all {len(found)} questions among the held-out ones"
        raise DataError(explain("sft.path", text, "they must differ", "name another file, or evaluation=null"))
    return kept


def _run(recipe: Recipe, data: _RunData, folder: RunFolder, found: checkpoint.Checkpoint | None) -> None:
    with _session(recipe, data, folder, found) as session:
        stages = loop.plan(session, data.cold, data.file)
        _say_what_comes(session, stages, found)
        probes.check_gold(session, data.held_task)
        session.asker.check([*data.task.problems, *data.held_out])
        check_lengths(session, [*data.cold, *data.file])
        state = None
        if found is not None:
            state = RunState.from_json(found.state, [stage.pool for stage in stages], data.hash, found.values)
        if data.offline is not None:
            _check_model(session, data.offline)
        _say_what_was(session, loop.run(session, stages, state))


def _check_model(session: Session, values: OfflineValues) -> None:
    """Offline values are of this model. A run that goes on has them in its checkpoint, with other weights.

    Raises:
        DataError: they are of another one.
    """
    values.check_model(session.model, session.recipe.model.source)
    otherwise = values.sampled_otherwise(session.recipe)
    if otherwise:
        session.display.note(f"{values.path}: sampled otherwise than training does: {otherwise}")


@contextmanager
def _session(
    recipe: Recipe, data: _RunData, folder: RunFolder, found: checkpoint.Checkpoint | None
) -> Iterator[Session]:
    """Everything a run needs, closed again at the end."""
    with ExitStack() as stack:
        display = stack.enter_context(make_display(sys.stdout))
        limits = recipe.answer.workers, recipe.answer.timeout
        judge = stack.enter_context(Judge(data.task.checker, *limits))
        other = data.held_task is not data.task
        held_judge = stack.enter_context(Judge(data.held_task.checker, *limits)) if other else judge
        full_determinism()
        source = str(found.model_folder) if found else recipe.model.source
        prepare(source, display)
        display.phase(f"loading {source}")
        tokenizer = load_tokenizer(source)
        device = choose_device(recipe.model.device)  # checked: a run folder may have come from another machine
        model = load_streaming(source, choose_dtype(recipe.model.dtype, device), device)
        runner = stack.enter_context(environments(recipe.environment, tokenizer, model))
        optimizer = MasterOptimizer(model, recipe.optim)
        if found is not None:
            found.restore(optimizer)
        yield Session(
            recipe=recipe,
            folder=folder,
            display=display,
            task=data.task,
            data_hash=data.hash,
            held_out=data.held_out,
            judge=judge,
            held_judge=held_judge,
            runner=runner,
            offline=data.offline,
            in_flight=found.in_flight if found else None,
            tokenizer=tokenizer,
            model=model,
            optimizer=optimizer,
            engine=TorchEngine(model, tokenizer, max_rows=recipe.engine.max_rows, kv_gb=recipe.engine.kv_gb),
        )


def _say_what_comes(session: Session, stages: Sequence[loop.Stage], found: checkpoint.Checkpoint | None) -> None:
    recipe, note = session.recipe, session.display.note
    parameters = sum(parameter.numel() for parameter in session.model.parameters())
    size = f"{parameters / 1e6:.0f}M" if parameters >= 1e6 else f"{parameters:,}"
    note(
        f"{recipe.model.source}: {size} parameters, {recipe.model.dtype} on {recipe.model.device}, "
        f"{recipe.model.threads} threads"
    )
    if not (session.asker.sampling.stop_tokens or session.asker.sampling.stop_strings):
        note("neither tokenizer nor model name an end token: every answer goes on to rollout.max_new_tokens")
    held = f", {len(session.held_out)} held out" if session.held_out else ""
    note(f"{session.task.name}: {len(session.task.problems)} training problems{held}")
    if session.runner is not None and session.runner.world.note:
        note(session.runner.world.note)
    if found is not None:
        note(f"resuming from {found.path.name}")
    else:
        note("stages: " + ", ".join(f"{stage.name} ({stage.steps} steps)" for stage in stages))


def _say_what_was(session: Session, state: RunState) -> None:
    path = session.folder.paths.root
    if session.held_out:
        session.display.table(summary_table(read_jsonl(session.folder.evaluations.path)))
    written = ["metrics.jsonl", "rollouts.jsonl"]
    records = list(read_jsonl(session.folder.paths.log("metrics")))
    if any(record["stage"] == "rl" for record in records):
        write_atomic(path / "curve.svg", curve_svg({session.recipe.name: records}))
        written.append("curve.svg")
        if session.recipe.tracks:
            write_atomic(path / "curriculum.svg", curriculum_svg(records))
            written.append("curriculum.svg")
    newest = complete(session.folder.paths.checkpoints)[-1]
    session.display.note(f"run written to {path}: {', '.join(written)}, {newest.relative_to(path)}")
    session.display.note(
        f"next: anabranch eval {path}    anabranch resume {path} {loop.further(session.recipe, state)}"
    )
