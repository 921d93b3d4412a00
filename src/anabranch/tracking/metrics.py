"""Every number of a training step's record: its name, unit and meaning, in one typed registry.

`metrics.jsonl` holds one record a step; `validate` refuses what is not in the registry, so docs/metrics.md, which is
made from it (`python -m anabranch.tracking.metrics > docs/metrics.md`), is complete by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from anabranch.records import Reason

STAGES = ("cold_start", "sft", "rl")
"""Stages of a run that make training records."""


@dataclass(frozen=True)
class Metric:
    """One number of a record.

    Example: `Metric("entropy", "nats", "Mean entropy of the policy over the trained tokens.", "policy")`.
    """

    name: str
    """`a/<b>` stands for a family of names: `reward/<term>`."""
    unit: str
    """A `share` is in [0, 1]."""
    doc: str
    group: str
    """Only numbers of the group `machine` may differ between a run and its resumed twin."""
    type: Literal["float", "int", "str"] = "float"
    """Whole numbers are never negative."""

    @property
    def family(self) -> str | None:
        """`reward/` for `reward/<term>`, None for a plain name."""
        head, mark, _ = self.name.partition("<")
        return head if mark else None


def _group(name: str, *rows: tuple[str, ...]) -> Iterable[Metric]:
    """Rows of (name, unit, doc[, type])."""
    for row in rows:
        kind = row[3] if len(row) > 3 else "float"
        yield Metric(row[0], row[1], row[2], name, kind)  # type: ignore[arg-type]


def _registry() -> Iterable[Metric]:
    yield from _group(
        "step",
        ("step", "steps", "Steps of this stage that are done with this one; the first record of a stage has 1.", "int"),
        ("stage", "name", "`cold_start` and `sft` (supervised) or `rl`.", "str"),
        ("policy_version", "version", "Version of the weights at the start of the step: RL answers are its.", "int"),
    )
    yield from _group(
        "reward",
        ("reward", "reward", "Mean reward over the sampled answers: the weighted sum of the parts."),
        ("reward/<term>", "reward", "Mean raw value of one reward term, before its weight."),
        ("reward_weight/<term>", "weight", "Weight of the term at this step; 0: its schedule has it out of force."),
        ("accuracy", "share", "Answers whose verdict is `correct`."),
        ("verdict/<reason>", "share", f"Answers with this reason code ({', '.join(Reason)}); they add up to 1."),
        (
            "reward_std",
            "reward",
            "Standard deviation within a group (0 for one answer), mean over groups; as `algorithm.std` says.",
        ),
        (
            "sigma_batch",
            "reward",
            "Standard deviation of the raw rewards over the whole batch, taken as `algorithm.std` says.",
        ),
    )
    yield from _group(
        "advantage",
        ("advantage_mean", "advantage", "(reward - baseline) / scale, before KL and whitening: mean over answers."),
        ("advantage_std", "advantage", "Of the same: unbiased standard deviation over answers."),
        ("advantage_min", "advantage", "Of the same: smallest."),
        ("advantage_max", "advantage", "Of the same: largest."),
        (
            "advantage_max_abs",
            "advantage",
            "Largest magnitude over tokens, as the loss uses it (after KL and whitening): a batch whose rewards nearly "
            "agree shows here.",
        ),
        ("advantage_clipped", "share", "Tokens whose advantage was clipped. Only with `algorithm.advantage_clip`."),
        (
            "zero_advantage",
            "share",
            "Answers whose every token has advantage exactly 0 in the loss: without a KL loss or an entropy bonus they "
            "teach nothing (and count as denominator).",
        ),
        (
            "centred_small",
            "share",
            "Answers with |reward - baseline| <= 0.02, before any scale: with group means and rewards 0 and 1 those of "
            "groups that agree, with tracked values those that were foreseen.",
        ),
        (
            "centred_variance",
            "reward^2",
            "Unbiased variance of reward - baseline over answers, before any scale; without groups of several answers "
            "that agree. `sigma_batch` squared is that of the raw rewards. Only where two answers are left.",
        ),
        ("dead_groups", "share", "Groups whose rewards are all the same. Only with several answers a problem."),
        ("dead_groups_right", "share", "Of all groups, those dead with every answer correct: too easy."),
        ("dead_groups_wrong", "share", "Of all groups, those dead with no answer correct: too hard."),
    )
    yield from _group(
        "values",
        (
            "value_mean",
            "reward",
            "Tracked value of the problem (expected reward), as it was before the step, mean over answers. All numbers "
            "of this group: only where values are tracked (`algorithm.tracker`).",
        ),
        ("value_count", "answers", "How many answers such a value is worth (alpha + beta), mean over the problems."),
        ("first_visits", "share", "Problems of the step that were never visited before."),
        (
            "divergence",
            "nats",
            "D: how far the policy moved since a problem's last visit, by the recipe's estimator; mean over those "
            "problems of the step that were visited before. Only where there is one. Not with divergence `constant`.",
        ),
        ("rho", "share", "What a visit keeps of the old answers, mean over the problems of the step."),
        ("rho_low", "share", "Problems of the step whose rho was held at `rho_min`. Not with divergence `constant`."),
        ("rho_high", "share", "Those whose rho was held at `rho_max` (every first visit). Not with `constant`."),
        (
            "calibration_error",
            "reward",
            "|predicted - observed| of each decile below, mean over answers. It has a floor: few answers are noisy.",
        ),
        (
            "predicted/<decile>",
            "reward",
            "Mean value, before the step, over answers to problems whose value is in this tenth: `0` is [0, 0.1), "
            "`9` is [0.9, 1]. Only for tenths that were drawn.",
        ),
        ("observed/<decile>", "reward", "Mean reward of the same answers."),
        ("drawn/<decile>", "share", "Problems of the step whose value is in this tenth: what the step was about."),
        ("problems/<decile>", "share", "All training problems, likewise: what there was to draw from."),
        (
            "draw_spread",
            "share",
            "Over how many problems a draw by weight is spread, 1 / sum p^2, of all. Only with `sampling.kind` "
            "`prioritised`.",
        ),
    )
    yield from _group(
        "policy",
        ("loss", "loss", "What was minimised. Supervised: mean negative log-prob of the trained tokens, nats."),
        (
            "loss_kl",
            "loss",
            "The KL term's part of `loss`, coefficient included. Only with a KL in the loss.",
        ),
        (
            "loss_entropy",
            "loss",
            "The entropy bonus's part of `loss`, coefficient and sign included: never positive. Only with one.",
        ),
        ("entropy", "nats", "Entropy of the policy's next-token distribution, mean over trained tokens."),
        (
            "clip_low",
            "share",
            "Trained tokens on which the lower clip bound acts: no gradient (detached ratio: capped).",
        ),
        ("clip_high", "share", "Trained tokens on which the upper clip bound acts, likewise."),
        ("clip_dual", "share", "Trained tokens on which the dual clip acts: no gradient. Only with a dual clip."),
        ("ratio_mean", "ratio", "pi / pi_old, mean over trained tokens. Exactly 1 in the first update of a batch."),
        ("ratio_max", "ratio", "Largest pi / pi_old."),
        ("kl_old_k1", "nats", "KL(old, new) a token by k1 = -log(pi / pi_old). May be negative."),
        ("kl_old_k3", "nats", "The same by k3 = pi/pi_old - 1 - log(pi / pi_old). Never negative, less noisy."),
        (
            "reference_age",
            "steps",
            "RL steps since the reference was taken, at the start of this step: 0 right after. Only with "
            "`algorithm.kl.reset`.",
            "int",
        ),
        (
            "reference_reset",
            "cause",
            "The reference was taken anew right before this step: `steps`, `spike` or `stall` says why. Only then.",
            "str",
        ),
        ("kl_ref", "nats", "KL to the reference a token, by the estimator of the recipe. Only with a KL term."),
        ("grad_norm", "norm", "Global gradient norm before clipping; mean over the optimizer steps."),
        ("lr", "rate", "Learning rate of the step: all its optimizer steps have the same."),
    )
    yield from _group(
        "answers",
        ("answer_length_mean", "tokens", "Tokens of an answer, mean."),
        ("answer_length_min", "tokens", "Shortest.", "int"),
        ("answer_length_max", "tokens", "Longest.", "int"),
        ("truncated", "share", "Answers cut at the length limit."),
        (
            "repeat_ratio",
            "share",
            "Of the answers cut there, those that had fallen into a loop: at least half of the answer, up to the "
            "cut, is one piece three times in a row or more. Only where answers were cut.",
        ),
    )
    yield from _group(
        "accounting",
        ("generated_rollouts", "answers", "Sampled in this step: trained + skipped + filtered + dropped.", "int"),
        ("trained_rollouts", "answers", "Packed and back-propagated.", "int"),
        ("skipped_rollouts", "answers", "Advantage 0: not packed, but counted in every denominator.", "int"),
        ("filtered_rollouts", "answers", "Taken out of the loss by a rule (overlong filter); not counted.", "int"),
        (
            "dropped_rollouts",
            "answers",
            "Answers of the groups that dynamic sampling left out. Only with `rollout.dynamic`, as the next four.",
            "int",
        ),
        ("groups_drawn", "groups", "Problems asked in all rounds of the step.", "int"),
        ("groups_kept", "share", "Groups that the step learns from, of those drawn: the pass rate.", "float"),
        ("groups_surplus", "groups", "Groups that differ, and were dropped because the step had enough.", "int"),
        ("sampling_rounds", "rounds", "Rounds of sampling until the step had its groups.", "int"),
        ("sampled_tokens", "tokens", "Drawn by the engine.", "int"),
        ("trained_tokens", "tokens", "With a loss term; once, however many passes (`train.epochs`).", "int"),
        ("packed_tokens", "tokens", "That went through forward and backward, shared prompts once; of one pass.", "int"),
        ("prompt_tokens", "tokens", "Of all prompts, each once whatever its number of answers.", "int"),
    )
    yield from _group(
        "asynchronous",
        (
            "staleness",
            "steps",
            "Mean number of steps since the answers were begun. Only with `rollout.asynchronous`, as this group.",
        ),
        ("staleness_max", "steps", "Largest; never more than `rollout.asynchronous.max_staleness`.", "int"),
        ("stale_tokens", "share", "Trained tokens that older weights drew than those of the start of the step."),
        ("left_in_flight", "answers", "Begun and not learned from when the step ends: not over, or not taken.", "int"),
        (
            "given_up",
            "answers",
            "Begun and dropped (`leftover: drop`). All answers begun so far are generated + given up + left in flight.",
            "int",
        ),
    )
    yield from _group(
        "environment",
        ("turns", "turns", "Mean number of times that the model had the word. Only with `environment`, as this group."),
        ("turns_max", "turns", "Largest.", "int"),
        ("calls/<outcome>", "calls", "Calls of a tool that went so, see docs/environments.md.", "int"),
        ("observed_tokens", "share", "Tokens of all answers that the environment wrote: never trained."),
    )
    yield from _group(
        "mass balance",
        (
            "mass_balance/forks",
            "forks",
            "Places that the numbers of this group are means over: first forks of groups whose rewards differ. The "
            "others are left out where there is none. Only with `diagnostics.mass_balance`, as this group.",
            "int",
        ),
        ("mass_balance/depth", "tokens", "Tokens that all answers of the group have in common before the fork."),
        ("mass_balance/kinds", "tokens", "Different tokens that were drawn there."),
        (
            "mass_balance/right",
            "share",
            "Q: probability, before the updates, of the tokens drawn whose answers did better than the group.",
        ),
        ("mass_balance/other", "share", "Probability of the other tokens drawn."),
        ("mass_balance/unsampled", "share", "Probability of all tokens that were not drawn; the three add up to 1."),
        ("mass_balance/right_2", "probability^2", "A_2: sum of p^2 over the right ones."),
        ("mass_balance/other_2", "probability^2", "B_2: sum of p^2 over the other drawn ones."),
        ("mass_balance/unsampled_2", "probability^2", "U_2: sum of p^2 over those not drawn; right or not is unknown."),
        (
            "mass_balance/unsampled_2_expected",
            "probability^2",
            "E[U_2]: sum of p^2 (1 - p)^N, what U_2 is on average over draws from the same policy.",
        ),
        ("mass_balance/net", "reward", "S_R: sum over drawn tokens of p times (mean reward of its answers - group's)."),
        ("mass_balance/term_right", "reward", "(1 - Q) sum of p^2 (R - S) over the right ones."),
        ("mass_balance/term_other", "reward", "-Q sum of p^2 (R - S) over the other drawn ones."),
        ("mass_balance/term_unsampled", "reward", "S Q U_2: undrawn tokens count as not right."),
        ("mass_balance/total", "reward", "Sum of the three terms: dQ over eta / N, if the theorem's step were made."),
        ("mass_balance/change", "probability", "Measured: Q of the same tokens after the step's updates less before."),
        ("mass_balance/change_other", "probability", "The same of the other drawn tokens."),
        ("mass_balance/change_unsampled", "probability", "The same of the undrawn tokens; the three add up to 0."),
        ("mass_balance/agreement", "share", "Forks at which `total` and `change` have the same sign."),
    )
    yield from _group(
        "pass@k",
        (
            "pass_at/<k>",
            "share",
            "Estimated probability that one of k answers is correct (unbiased), mean over all problems sampled; k: "
            "powers of two and `rollout.per_problem`. Only with `diagnostics.pass_curve`, as this group.",
        ),
        ("pass_at_low/<k>", "share", "Lower end of its 95 % bootstrap interval over problems."),
        ("pass_at_high/<k>", "share", "Upper end."),
    )
    yield from _group(
        "engine",
        (
            "engine_gap_mean",
            "nats",
            "Mean of |engine_logprob - trainer log-prob| over trained tokens of the first update.",
        ),
        (
            "engine_gap_max",
            "nats",
            "Largest. One that grows over the steps is a bug, a too coarse dtype, or staleness.",
        ),
        (
            "mismatch_gap",
            "nats",
            "Mean of |old log-prob - engine_logprob| over trained tokens, all updates. Only with `algorithm.mismatch`.",
        ),
        (
            "mismatch_bounded",
            "share",
            "Trained tokens whose mismatch weight was held at a bound (tis) or set to 0. Only with "
            "`algorithm.mismatch`.",
        ),
        (
            "mismatch_dropped",
            "share",
            "Trained answers all of whose tokens got mismatch weight 0. Only with `algorithm.mismatch`.",
        ),
    )
    yield from _group(
        "machine",
        ("time/prefill", "seconds", "Computing the prompts."),
        ("time/decode", "seconds", "Forward passes of decoding."),
        ("time/draw", "seconds", "Drawing tokens."),
        ("time/wait", "seconds", "Nothing to draw: every rollout in flight waited for its environment."),
        ("time/judge", "seconds", "Waiting for verdicts after the last answer was there."),
        ("time/pack", "seconds", "Credit, and laying answers out in rows."),
        ("time/score", "seconds", "Extra forwards for old and reference log-probs."),
        ("time/forward", "seconds", "Training: forward passes and the loss."),
        ("time/backward", "seconds", "Training: backward passes."),
        ("time/optimizer", "seconds", "Clipping and the optimizer."),
        ("time/diagnose", "seconds", "What `diagnostics` asks for."),
        ("time/save", "seconds", "Checkpoint of the step before this record, if any."),
        ("time/evaluate", "seconds", "Evaluation that followed the step before this record, if any."),
        ("time/step", "seconds", "The whole step by the wall clock, without saving and evaluation."),
        ("tokens_per_second", "tokens/s", "Sampled tokens (supervised: trained tokens) over `time/step`."),
        ("rollouts_per_second", "answers/s", "Sampled answers over `time/step`."),
        (
            "memory_peak_mb",
            "MB",
            "Peak resident memory of the process and its live children, in 10^6 bytes.",
        ),
    )


METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _registry()})
"""The registry, in the order of the reference page."""

_FAMILIES: Mapping[str, Metric] = MappingProxyType({m.family: m for m in METRICS.values() if m.family is not None})


def find(name: str) -> Metric:
    """The metric that a name in a record stands for: `reward/accuracy` is of the family `reward/<term>`.

    Raises:
        ValueError: no such metric.
    """
    if name in METRICS and METRICS[name].family is None:
        return METRICS[name]
    head, slash, tail = name.partition("/")
    family = _FAMILIES.get(head + slash)
    unknown_reason = head == "verdict" and tail not in set(Reason)
    if family is None or not tail or "<" in tail or unknown_reason:
        raise ValueError(f"metric {name!r} is not in the registry (anabranch.tracking.metrics.METRICS)")
    return family


def validate(record: Mapping[str, Any]) -> None:
    """Check one record of `metrics.jsonl`. What it refuses is a bug of ours, never a user's mistake.

    Raises:
        ValueError: an unknown name; a value that is not finite, of another type than registered, a negative count, or
            a share outside [0, 1]; a record without step or stage; rollouts that are not accounted for.
    """
    for name in ("step", "stage"):
        if name not in record:
            raise ValueError(f"metric {name!r} is missing from the record")
    for name, value in record.items():
        _check_value(name, find(name), value)
    if record["stage"] not in STAGES:
        raise ValueError(f"metric 'stage' is {record['stage']!r}, not one of {STAGES}")
    parts = [f"{part}_rollouts" for part in ("generated", "trained", "skipped", "filtered")]
    if all(part in record for part in parts):
        generated, *kinds = (record[part] for part in parts)
        kinds.append(record.get("dropped_rollouts", 0))
        if generated != sum(kinds):
            found = " + ".join(map(str, kinds))
            raise ValueError(
                f"metric 'generated_rollouts' is {generated}, but trained + skipped + filtered + dropped is {found}"
            )


def _check_value(name: str, metric: Metric, value: object) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    right = {
        "str": isinstance(value, str),
        "int": number and isinstance(value, int | np.integer),
        "float": number,
    }[metric.type]
    if not right:
        raise ValueError(f"metric {name!r} is {value!r} ({type(value).__name__}), not {metric.type}")
    if metric.type == "str":
        return
    plain = float(value)  # type: ignore[arg-type]
    if not math.isfinite(plain):
        raise ValueError(f"metric {name!r} is {plain}, not finite")
    if metric.type == "int" and plain < 0:
        raise ValueError(f"metric {name!r} is {value!r}, a negative count")
    if metric.unit == "share" and not -1e-6 <= plain <= 1 + 1e-6:  # room for a rounded mean of ones
        raise ValueError(f"metric {name!r} is {plain}, not a share in [0, 1]")


_INTRODUCTION = """# Metrics reference

This page is made from the registry in `src/anabranch/tracking/metrics.py`
(`python -m anabranch.tracking.metrics > docs/metrics.md`); a test holds the two equal, and a record with a name that is
not listed here is refused when it is written.

A run folder holds these logs, one JSON object a line:

* `metrics.jsonl`: one record a training step, with the numbers below. A number that a step does not have (`kl_ref`
  without a KL term, anything about answers in the cold start) is left out, never written as zero.
* `rollouts.jsonl`: one record a sampled answer: `step`, `stage`, problem `key`, `sample`, `source`, `question`,
  `prompt` (the whole prompt as the model got it, where it was recorded), `answer`, `verdict` (reason code), `detail`,
  `extracted`, `gold`, `parts` (raw reward terms), `reward`, `stop`, `tokens`, `policy_versions`; `begun` where an
  earlier step began the answer, `turns` where it had several; and `dropped` (`agrees`, `surplus`) where dynamic
  sampling left the answer's group out of the step.
* `evaluations.jsonl`: one record an evaluation: `step`, `stage` (`before`, `cold_start`, `sft`, `rl`),
  `policy_version`, `num_problems`, `num_samples`, `level`, `estimates` (`mean@2`: `value`, `low`, `high`),
  `per_problem` (mean of each held-out problem, in their order), and `change` (paired difference to an earlier stage)
  where there is one.
* `clipped_tokens.jsonl`: one record an RL step in which the clip acted on a token, in any of its updates: `step`,
  `policy_version`, and for each bound that acted (`low`, `high`, `dual`) how often (`count`), on how many different
  tokens (`kinds`), and the 20 most frequent ones (`tokens`: id `token`, `text`, `count`, and `starts`: how often of
  those it was the first token of an answer, a sentence or a line).

How to read a run in one minute:

* **Does it learn?** `accuracy` and `reward` rise. `dead_groups_wrong` near 1 means too hard, `dead_groups_right` near 1
  too easy: in both cases nothing is learned, whatever the learning rate.
* **Is it healthy?** `entropy` falls slowly, not to zero; `truncated` stays low; `grad_norm` has no spikes;
  `ratio_max` and the clip shares stay moderate; `engine_gap_mean` does not grow.
* **Is every answer accounted for?** `generated_rollouts` = `trained_rollouts` + `skipped_rollouts` +
  `filtered_rollouts` + `dropped_rollouts`, checked at every step.
* **What does dynamic sampling hide?** Nothing: rewards, verdicts, dead groups and lengths are those of every answer
  sampled; `reward_std`, `sigma_batch`, the advantages and the policy's numbers are those of the groups that were kept.
* **Where does the time go?** The `time/...` phases against `time/step`.

Numbers of the group *machine* depend on the clock; all others are the same, bit for bit on CPU, in a run that was
killed and resumed and in one that was never interrupted.

Units: a *share* is in [0, 1]; *nats* are natural logarithms; *answers* are rollouts.
"""


def reference_markdown() -> str:
    """The text of docs/metrics.md: the introduction and one table a group."""
    lines = [_INTRODUCTION]
    for group in dict.fromkeys(metric.group for metric in METRICS.values()):
        lines += [f"## {group.capitalize()}", "", "| name | type | unit | meaning |", "|---|---|---|---|"]
        members = [metric for metric in METRICS.values() if metric.group == group]
        lines += [f"| `{m.name}` | {m.type} | {m.unit} | {m.doc.replace('|', chr(92) + '|')} |" for m in members]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference_markdown(), end="")
