"""What the metric registry promises: nothing undocumented, not finite or of a wrong type reaches metrics.jsonl."""

from pathlib import Path

import numpy as np
import pytest

from anabranch.records import Reason
from anabranch.tracking.metrics import METRICS, find, reference_markdown, validate
from anabranch.tracking.rollouts import RolloutRecord

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

RECORD = {
    "step": 3,
    "stage": "rl",
    "policy_version": 15,
    "reward": 0.5,
    "reward/accuracy": 0.5,
    "verdict/no_answer": 0.25,
    "accuracy": 0.5,
    "loss": -0.01,
    "answer_length_min": 4,
    "time/step": 11.5,
}


def test_the_reference_page_is_the_one_made_from_the_registry():
    assert PAGE.read_text(encoding="utf-8") == reference_markdown(), (
        "run: python -m anabranch.tracking.metrics > docs/metrics.md"
    )


def test_every_metric_stands_in_the_reference_with_its_meaning():
    page = reference_markdown()
    for metric in METRICS.values():
        assert f"| `{metric.name}` | {metric.type} | {metric.unit} |" in page
        assert metric.doc.endswith(".")


def test_every_field_of_a_rollout_record_stands_in_the_reference():
    page = reference_markdown()
    assert [name for name in RolloutRecord.__annotations__ if f"`{name}`" not in page and f"{name}`" not in page] == []


def test_a_good_record_passes_with_plain_and_with_numpy_numbers():
    validate(RECORD)
    validate({**RECORD, "step": np.int64(3), "reward": np.float32(0.5), "lr": 1, "trained_tokens": np.int32(9)})


def test_family_names_are_found_and_their_patterns_are_not_names():
    assert find("reward/format").name == "reward/<term>"
    assert find("reward").name == "reward"
    assert all(find(f"verdict/{reason}").name == "verdict/<reason>" for reason in Reason)


@pytest.mark.parametrize(
    "name", ["rewards", "reward/", "reward/<term>", "verdict/unlucky", "time/lunch", "", "/", "step/x"]
)
def test_an_unknown_name_is_refused_and_named(name):
    with pytest.raises(ValueError, match=f"metric {name!r} is not in the registry"):
        validate({**RECORD, name: 1.0})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("entropy", float("nan"), "not finite"),
        ("grad_norm", float("inf"), "not finite"),
        ("reward/accuracy", np.float32("nan"), "not finite"),
        ("entropy", "0.5", "not float"),
        ("entropy", None, "not float"),
        ("entropy", True, "not float"),
        ("entropy", np.zeros(1), "not float"),
        ("sampled_tokens", 1.5, "not int"),
        ("sampled_tokens", -1, "a negative count"),
        ("step", "3", "not int"),
        ("stage", 3, "not str"),
        ("stage", "sleep", "not one of"),
        ("accuracy", 1.5, "not a share"),
        ("clip_low", -0.5, "not a share"),
    ],
)
def test_a_wrong_value_is_refused_and_named(name, value, says):
    with pytest.raises(ValueError, match=f"metric '{name}' is .*{says}"):
        validate({**RECORD, name: value})


@pytest.mark.parametrize("name", ["step", "stage"])
def test_a_record_says_which_step_of_which_stage_it_is(name):
    with pytest.raises(ValueError, match=f"metric '{name}' is missing"):
        validate({key: value for key, value in RECORD.items() if key != name})


def test_every_rollout_is_accounted_for():
    counts = {"generated_rollouts": 128, "trained_rollouts": 80, "skipped_rollouts": 40, "filtered_rollouts": 8}
    validate({**RECORD, **counts})
    with pytest.raises(ValueError, match="'generated_rollouts' is 128"):
        validate({**RECORD, **counts, "skipped_rollouts": 39})


def test_a_rounded_mean_of_ones_is_still_a_share():
    validate({**RECORD, "accuracy": 1.0000001})


def test_clock_and_memory_are_the_machine_group_and_nothing_else_is():
    machine = {name for name, metric in METRICS.items() if metric.group == "machine"}
    clock = {name for name in METRICS if name.startswith("time/") or name.endswith("_per_second")}
    assert machine == clock | {"memory_peak_mb"}
