"""What a result keeps of a run's logs, from logs written by hand."""

import json

import pytest

from anabranch.study.results import CLIPPED_TOKENS, Clipped, RunResult, extract


def token(text, count, starts=0):
    return {"token": 0, "text": text, "count": count, "starts": starts}


@pytest.fixture
def folder(tmp_path):
    step = {"stage": "rl", "generated_rollouts": 4, "sampled_tokens": 10, "trained_tokens": 9, "time/step": 1.5}
    logs = {
        "metrics": [{**step, "step": 1, "accuracy": 0.5}, {**step, "step": 2, "accuracy": 0.25, "repeat_ratio": 0.5}],
        "evaluations": [{"stage": "before", "step": 0, "per_problem": [0.5, 1.0], "num_samples": 4, "num_problems": 2}],
        "clipped_tokens": [
            {
                "step": 1,
                "policy_version": 0,
                "high": {"count": 9, "kinds": 3, "tokens": [token("7", 4, 1), token("A", 3)]},
            },
            {
                "step": 2,
                "policy_version": 4,
                "high": {"count": 5, "kinds": 1, "tokens": [token("A", 5, 5)]},
                "low": {"count": 1, "kinds": 1, "tokens": [token("\n", 1)]},
            },
        ],
    }
    for name, records in logs.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    environment = {"packages": {"anabranch": "0"}, "git_commit": None}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    return tmp_path


def test_clipped_tokens_are_added_up_by_bound_and_the_most_frequent_come_first(folder):
    result = extract(folder, "a", 0)
    assert result.clipped == {
        "high": Clipped(14, (("A", 8, 5), ("7", 4, 1))),  # 2 of the 14 are of a token that no step listed
        "low": Clipped(1, (("\n", 1, 0),)),
    }
    assert RunResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.curves["repeat_ratio"] == (None, 0.5)


def test_only_so_many_tokens_are_kept(folder):
    tokens = [token(chr(100 + n), n + 1) for n in range(CLIPPED_TOKENS + 5)]
    record = {"step": 1, "policy_version": 0, "high": {"count": 9999, "kinds": len(tokens), "tokens": tokens}}
    (folder / "clipped_tokens.jsonl").write_text(json.dumps(record) + "\n")
    (kept,) = extract(folder, "a", 0).clipped.values()
    assert (kept.count, len(kept.tokens), kept.tokens[0][1]) == (9999, CLIPPED_TOKENS, CLIPPED_TOKENS + 5)


def test_a_run_without_clipping_has_no_such_log_and_older_results_have_no_such_part(folder):
    (folder / "clipped_tokens.jsonl").unlink()
    result = extract(folder, "a", 0)
    assert result.clipped == {}
    stored = result.to_json()
    del stored["clipped"]
    assert RunResult.from_json(json.loads(json.dumps(stored))) == result
