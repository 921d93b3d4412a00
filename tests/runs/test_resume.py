"""A run that is killed and resumed gives the same bits as one that was never interrupted. The kills are SIGKILLs."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anabranch.recipe.io import to_yaml
from anabranch.tracking.checkpoints import complete

KILLED = -9

EVALUATING, GENERATING = r"(cold_start|rl): generating \d/8", r": generating \d+/16"
"""What the recipes below show: 4 held-out problems x 2 answers; 4 problems x 4 answers a step."""


@pytest.fixture(scope="module")
def staged(make_recipe) -> str:
    """A recipe with all that a run can do between two steps, as YAML."""
    return to_yaml(
        make_recipe(
            "cold_start.steps=6",
            "steps=8",
            "train.minibatches=2",
            "evaluation.every=2",
            "save={every: 2, keep: 1}",
            "optim={lr: 0.01, warmup: 2, schedule: cosine}",
        )
    )


@pytest.fixture(scope="module")
def uninterrupted(staged, live, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert live(path=folder / "run", recipe=staged, log=folder / "log") == 0
    return folder / "run"


def live_through(live: Callable[..., int], recipe: str, run: Path, kills: list[dict[str, Any]]) -> None:
    """Start a run, have it killed each time in the way given, resume it, and let the last life reach the end."""
    for number, kill in enumerate([*kills, {}]):
        log = run.with_name(f"log-{number}")
        code = live(path=run, log=log, **({} if (run / "recipe.yaml").exists() else {"recipe": recipe}), **kill)
        assert code == (KILLED if kill else 0), log.read_text()


def all_logs(run: Path) -> str:
    """What all lives of a run printed."""
    return "".join(log.read_text() for log in sorted(run.parent.glob("log-*")))


def test_a_run_killed_at_random_instants_is_the_same_to_the_bit(live, staged, uninterrupted, same_run, tmp_path):
    dice = random.Random(20)
    run = tmp_path / "run"
    armed = [  # what the run says, how often before the kill is armed, and at most how much later it comes
        ("before: generating", dice.randint(1, 9), 0.01),  # there is no checkpoint yet
        ("cold_start: training", 3, 0.01),
        ("before: loading", 1, 0.4),  # anywhere in a life
        (EVALUATING, dice.randint(1, 8), 0.01),
        (GENERATING, dice.randint(33, 48), 0.01),  # in the third RL step of this life
        ("rl: training 2/2", 2, 0.01),
        ("rl: saving", 1, 0.01),
    ]
    kills = [
        {"phase": {"phase": phase, "count": count, "delay": dice.uniform(0, latest)}} for phase, count, latest in armed
    ]
    live_through(live, staged, run, kills)
    same_run(uninterrupted, run)
    resumed_from = {int(number) for number in re.findall(r"resuming from step-(\d+)", all_logs(run))}
    assert resumed_from & {2, 4}  # within the cold start
    assert resumed_from & {8, 10, 12}  # within RL


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_good_one(live, staged, uninterrupted, same_run, tmp_path):
    run = tmp_path / "run"
    folder = run / "checkpoints"

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def life(**kill: Any) -> None:
        start = {} if (run / "recipe.yaml").exists() else {"recipe": staged}
        code = live(path=run, log=tmp_path / "log", **start, **kill)
        assert code == (KILLED if kill else 0), (tmp_path / "log").read_text()

    life(operation=("open", ".partial-step-000002/manifest.json"))  # weights and moments are written, the proof is not
    assert names() == [".partial-step-000002"]
    assert (folder / ".partial-step-000002" / "optimizer.safetensors").is_file()
    assert complete(folder) == []
    life(operation=("os.rename", ".partial-step-000004"))  # all is written, but has not got its name
    assert names() == [".partial-step-000004", "step-000002"]
    life(operation=("shutil.rmtree", ".partial-step-000002"))  # the new one is in place, the old one half removed
    assert names() == [".partial-step-000002", "step-000004"]
    life()
    assert names() == ["step-000014"]
    same_run(uninterrupted, run)


def test_a_killed_run_leaves_no_process_behind(live, staged, tmp_path):
    kill = {"phase": GENERATING, "count": 1, "delay": 0.0}
    assert live(path=tmp_path / "run", recipe=staged, log=tmp_path / "log", phase=kill) == KILLED
    deadline = time.monotonic() + 30
    while live.left_behind() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live.left_behind() == []


def test_a_killed_run_finds_its_reference_model_again(live, make_recipe, same_run, tmp_path):
    recipe = to_yaml(
        make_recipe("steps=4", "model.dtype=bfloat16", "train.minibatches=2", "save.every=1", preset="grpo")
    )
    assert live(path=tmp_path / "whole", recipe=recipe, log=tmp_path / "log") == 0
    kills = [("rl: training 2/2", 2, 0.002), ("rl: scoring", 2, 0.001)]
    live_through(
        live,
        recipe,
        tmp_path / "run",
        [{"phase": {"phase": phase, "count": count, "delay": delay}} for phase, count, delay in kills],
    )
    same_run(tmp_path / "whole", tmp_path / "run", logs=("rollouts",))


@pytest.fixture(scope="module")
def resetting(make_recipe, sums) -> str:
    """Dynamic sampling, a scheduled reward, and a reference that is reset, as YAML."""
    return to_yaml(
        make_recipe(
            "steps=6",
            "optim.lr=1e-3",  # so little that groups still differ at the end
            "rollout.dynamic.overdraw=1.25",
            "train.minibatches=2",
            "reward.2={term: cosine_length, schedule: {kind: cycle, on: 2, off: 1}}",
            "algorithm.kl.reset={every: 2, stall: 3, moments: drop}",
            f"evaluation={{problems: 2, samples: 1, every: 1, data: {{kind: jsonl, path: {sums / 'held_out.jsonl'}}}}}",
            "save={every: 1, keep: 2}",
            preset="grpo",
        )
    )


def test_resets_and_dynamic_sampling_survive_a_kill_at_any_instant(live, resetting, same_run, tmp_path):
    whole, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for folder in (whole.parent, run.parent):
        folder.mkdir()
    assert live(path=whole, recipe=resetting, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    sampling = {"phase": r"rl: generating \d+/(20|16|12|8|4)$", "count": 30, "delay": 0.0}
    kills = [
        {"phase": sampling},
        {"operation": ("open", "reference-000002.part")},  # written, not yet safe on disk
        {"operation": ("os.rename", "reference-000002.part")},  # safe, without its name
        {"operation": ("open", "reference-000002.json.part")},  # has its name, not yet its proof
        {"operation": ("open", ".partial-step-000002/manifest.json")},  # no checkpoint names it yet
        {"operation": ("os.remove", "reference.safetensors")},  # no checkpoint names the first one any more
        {"operation": ("os.rename", "reference-000004.json.part")},
        {"operation": ("os.rename", ".partial-step-000006")},
    ]
    live_through(live, resetting, run, kills)
    same_run(whole, run)
    names = [sorted(path.name for path in folder.glob("reference*")) for folder in (whole, run)]
    assert names[0] == names[1]
    assert {name.partition(".")[0] for name in names[0]} == {"reference-000004", "reference-000006"}
    for name in names[0]:
        assert (whole / name).read_bytes() == (run / name).read_bytes()
