"""From judged answers to numbers, and from numbers to what a person reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.evaluation.folder import AnswerRecord
from anabranch.evaluation.metrics import LEVEL, Estimate, maj_at_k, mean_at_k, pass_at_k
from anabranch.evaluation.overlap import WORDS, Overlap
from anabranch.recipe.text import inline
from anabranch.records import Reason, StopReason
from anabranch.tracking.tables import TextTable

MANY_CUT, MANY_SILENT = 0.1, 0.25
"""From these shares of cut answers, and of answers in which nothing was found, the report says what to do about it."""
SHOWN = 3
"""How many problems a remark names."""

TIE_RULE = (
    "maj@k: equal texts are one answer; of several with the most votes each wins equally often; no answer never wins"
)
NO_WIDTH = "an interval without width says that all problems came out the same, not that the value is certain"


def sizes(samples: int) -> list[int]:
    """The k of pass@k and maj@k: powers of two up to the number of samples, and that number.

    >>> sizes(6)
    [1, 2, 4, 6]
    """
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def estimates(answers: Sequence[Sequence[AnswerRecord]]) -> dict[str, Estimate]:
    """mean@K, pass@k and maj@k, with bootstrap intervals over problems.

    pass@k counts answers that were accepted in full, mean@K and maj@k their values, which may lie between 0 and 1.

    Args:
        answers: K records for each of N problems.
    """
    values = [[record["value"] for record in each] for each in answers]
    correct = [[record["verdict"] == Reason.CORRECT for record in each] for each in answers]
    texts = [[record["extracted"] for record in each] for each in answers]
    K = len(answers[0])
    found = {f"mean@{K}": mean_at_k(values)}
    found |= {f"pass@{k}": pass_at_k(correct, k) for k in sizes(K)}
    found |= {f"maj@{k}": maj_at_k(texts, values, k) for k in sizes(K) if k > 1}
    return found


def numbers(records: Sequence[AnswerRecord], samples: int) -> dict[str, Any]:
    """Everything that `result.json` says about the answers, plain JSON types.

    Args:
        records: problem after problem, sample after sample; at least one problem.
        samples: K, answers a problem.
    """
    answers = [records[start : start + samples] for start in range(0, len(records), samples)]
    counts = Counter(record["verdict"] for record in records)
    return {
        "problems": len(answers),
        "samples": samples,
        "level": LEVEL,
        "estimates": {
            name: {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for name, estimate in estimates(answers).items()
        },
        "verdicts": {reason.value: counts[reason.value] for reason in Reason if counts[reason.value]},
        "answer_length_mean": sum(record["tokens"] for record in records) / len(records),
        "truncated": sum(record["stop"] == StopReason.LENGTH for record in records) / len(records),
        "per_problem": {each[0]["key"]: sum(record["value"] for record in each) / samples for each in answers},
    }


def overlap_numbers(overlap: Overlap) -> dict[str, Any]:
    """An overlap as plain JSON types."""
    return {
        "training_problems": overlap.num_training,
        "same": list(overlap.same),
        "near": [{"key": key, "training_key": near, "share": share} for key, near, share in overlap.near],
    }


def accuracy_table(result: Mapping[str, Any], title: str) -> TextTable:
    """One line an estimate."""
    rows = [
        (name, f"{100 * ends['value']:.1f}", f"{100 * ends['low']:.1f} to {100 * ends['high']:.1f}")
        for name, ends in result["estimates"].items()
    ]
    return TextTable(title, ("accuracy", "%", f"{100 * result['level']:g} % interval over problems"), tuple(rows))


def verdict_table(result: Mapping[str, Any]) -> TextTable:
    """One line a verdict that occurred, the most frequent first."""
    total = sum(result["verdicts"].values())
    counts = sorted(result["verdicts"].items(), key=lambda item: -item[1])
    rows = tuple((name.replace("_", " "), str(count), f"{100 * count / total:.1f}") for name, count in counts)
    return TextTable("What became of the answers", ("verdict", "answers", "%"), rows)


def remarks(result: Mapping[str, Any], max_new_tokens: int, extract: Sequence[str]) -> list[str]:
    """What has to be said beside the tables, a line each.

    Args:
        result: as in `result.json`.
        max_new_tokens: where answers were cut.
        extract: how final answers were found.
    """
    lines = [_lengths(result, max_new_tokens)]
    if result["samples"] > 1:
        lines.append(TIE_RULE)
    if any(ends["low"] == ends["high"] for ends in result["estimates"].values()):
        lines.append(NO_WIDTH)
    if result["truncated"] >= MANY_CUT:
        lines.append(f"many answers were cut: rollout.max_new_tokens={2 * max_new_tokens} gives them more room")
    if result["verdicts"].get(Reason.NO_ANSWER.value, 0) >= MANY_SILENT * sum(result["verdicts"].values()):
        lines.append(
            f"many answers hold no final answer where it was looked for (answer.extract={inline(list(extract))}); "
            "answers.jsonl shows what they say"
        )
    refused = result["gold_refused"]
    if refused:
        lines.append(
            f"WARNING: {len(refused)} of {result['problems']} problems cannot be solved, their own gold answers are "
            f"not accepted: {_some(refused)}"
        )
    return [*lines, *_overlap_lines(result)]


def _lengths(result: Mapping[str, Any], max_new_tokens: int) -> str:
    speed = result["answers_per_second"]
    return (
        f"answers have {result['answer_length_mean']:.1f} tokens on average, {result['truncated']:.1%} were cut at "
        f"{max_new_tokens}" + ("" if speed is None else f"; {speed:.2f} answers/s")
    )


def _overlap_lines(result: Mapping[str, Any]) -> list[str]:
    overlap = result["overlap"]
    if overlap is None:
        return []
    if "unknown" in overlap:
        return [f"WARNING: not compared with the training problems: {overlap['unknown']}"]
    trained, lines = f"{overlap['training_problems']} training problems", []
    if overlap["same"]:
        lines.append(f"WARNING: {len(overlap['same'])} problems are among the {trained}: {_some(overlap['same'])}")
    if overlap["near"]:
        pairs = [f"{pair['key']} ({pair['share']:.0%} of {pair['training_key']})" for pair in overlap["near"]]
        lines.append(
            f"WARNING: {len(pairs)} problems share most of their {WORDS}-word phrases with one of the {trained}: "
            f"{_some(pairs)}"
        )
    return lines or [f"none of these problems is among the {trained} or shares most of its words with one"]


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")
