"""What `clipped_tokens.jsonl` says: which tokens the clip acted on, and what ratios are to in every pass."""

import math

import numpy as np
import pytest
import torch

from anabranch.batching.credit import Credit
from anabranch.batching.pack import pack
from anabranch.modeling.tiny import character_tokenizer
from anabranch.recipe.tree import Algorithm, Clip
from anabranch.records import Segment, StreamGraph
from anabranch.train.clipped import MOST, clipped_record
from anabranch.train.lesson import Lesson, old_logprobs
from anabranch.train.trainer import Update

TOKENIZER = character_tokenizer("".join(map(chr, range(ord(" "), ord("~") + 1))))


def lesson(answers, advantages, *, minibatches=None, weights=None, row_tokens=64):
    """A lesson on these texts, all to the prompt `?`; one advantage an answer, all packed."""
    prompt = Segment(TOKENIZER.encode("?", add_special_tokens=False))
    tokens = [TOKENIZER.encode(text, add_special_tokens=False) for text in answers]
    graphs = [StreamGraph((prompt, Segment(ids, (0,), np.ones(len(ids), dtype=bool)))) for ids in tokens]
    home = minibatches or [0] * len(answers)
    rows = [
        pack(graphs, [0] * len(graphs), [index == part for index in home], row_tokens=row_tokens)
        for part in range(max(home) + 1)
    ]
    sequence_N = torch.repeat_interleave(torch.arange(len(answers)), torch.tensor([len(ids) for ids in tokens]))
    advantage_N = torch.tensor(advantages, dtype=torch.float64)[sequence_N]
    weight_N = torch.tensor(weights or [1.0] * len(answers), dtype=torch.float64)[sequence_N]
    kept_B = torch.ones(len(answers), dtype=torch.bool)
    return Lesson(Credit(advantage_N, weight_N, kept_B, torch.tensor(advantages), {}), rows, None, None)


def update(logprobs):
    values_N = torch.tensor(logprobs, dtype=torch.float32)
    return Update(0.0, 1.0, {}, 0.0, int((~values_N.isnan()).sum()), values_N)


def entries(side):
    return [(entry["text"], entry["count"], entry["starts"]) for entry in side["tokens"]]


UP, DOWN = math.log(2.0), math.log(0.5)


def test_a_token_is_listed_under_the_bound_that_acted_with_its_text_and_place():
    # `So 1.\nSo` is good: both `S` and one `o` become twice as likely. `so` is bad: `o` half as likely, `s` twice.
    taught = lesson(["So 1.\nSo", "so"], [1.0, -1.0])
    before, after = [0.0] * 10, [UP, UP, 0, 0, 0, 0, UP, 0, UP, DOWN]
    record = clipped_record(Algorithm(), TOKENIZER, taught, [update(before), update(after)])
    assert set(record) == {"low", "high"}
    assert entries(record["high"]) == [("S", 2, 2), ("o", 1, 0)]  # the first of the answer, and after the newline
    assert (record["high"]["count"], record["high"]["kinds"]) == (3, 2)
    assert entries(record["low"]) == [("o", 1, 0)]
    (found,) = {entry["token"] for entry in record["low"]["tokens"]}
    assert TOKENIZER.decode([found]) == "o"


def test_the_dual_clip_has_a_list_of_its_own():
    taught = lesson(["ab"], [-1.0])
    record = clipped_record(Algorithm(clip=Clip(dual=1.5)), TOKENIZER, taught, [update([0, 0]), update([UP, 0])])
    assert {side: entries(found) for side, found in record.items()} == {"dual": [("a", 1, 1)]}


def test_all_updates_of_a_step_count_and_the_first_one_clips_nothing():
    taught = lesson(["ab"], [1.0])
    updates = [update([-1.0, -1.0]), update([UP - 1, -1.0]), update([UP - 1, UP - 1])]
    assert clipped_record(Algorithm(), TOKENIZER, taught, updates[:1]) == {}
    record = clipped_record(Algorithm(), TOKENIZER, taught, updates)
    assert entries(record["high"]) == [("a", 2, 2), ("b", 1, 0)]


def test_a_token_outside_the_loss_is_not_listed():
    taught = lesson(["a", "b"], [1.0, 1.0], weights=[1.0, 0.0])
    record = clipped_record(Algorithm(), TOKENIZER, taught, [update([0, 0]), update([UP, UP])])
    assert entries(record["high"]) == [("a", 1, 1)]


def test_a_sequence_ratio_lists_all_tokens_of_a_clipped_answer():
    taught = lesson(["ab", "cd"], [1.0, 1.0], row_tokens=3)  # one answer a row
    gspo = Algorithm(ratio="sequence", clip=Clip(low=3e-4, high=4e-4))
    record = clipped_record(gspo, TOKENIZER, taught, [update([0.0] * 4), update([UP, 0, 0, 0])])
    assert entries(record["high"]) == [("a", 1, 1), ("b", 1, 0)]


@pytest.mark.parametrize("before", ["1. ", "1.", "!", "?", ":", "\n"])
def test_what_ends_a_sentence(before):
    taught = lesson([f"x{before}So"], [1.0])
    size = len(before) + 3
    after = [0.0] * size
    after[-2] = UP
    starts = clipped_record(Algorithm(), TOKENIZER, taught, [update([0.0] * size), update(after)])["high"]["tokens"]
    assert [entry["starts"] for entry in starts] == [0 if before.endswith(" ") else 1]  # a space is a token here


def test_the_most_frequent_tokens_are_listed_and_all_are_counted():
    text = "".join(map(chr, range(ord("A"), ord("A") + 30))) + "^"
    taught = lesson([text], [1.0])
    record = clipped_record(Algorithm(), TOKENIZER, taught, [update([0.0] * 31), update([UP] * 31)])
    assert (record["high"]["count"], record["high"]["kinds"]) == (31, 30)
    assert len(record["high"]["tokens"]) == MOST
    assert entries(record["high"])[:2] == [("^", 2, 0), ("A", 1, 1)]  # then by id


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_ratios_of_every_pass_are_to_what_the_first_update_of_the_batch_found(ratio):
    """Two mini-batches, two passes: the first mini-batch's old log-probs are found by its first update."""
    nan = math.nan
    taught = lesson(["a", "b"], [1.0, 1.0], minibatches=[0, 1])
    scored = Lesson(taught.credit, taught.rows, torch.tensor([nan, -2.0]), None)
    updates = [update([-1.0, nan]), update([nan, -1.5]), update([-0.5, nan]), update([nan, -1.0])]
    assert old_logprobs(scored, []) is None  # on policy
    for done in range(1, 4):
        assert old_logprobs(scored, updates[:done]).tolist() == [-1.0, -2.0]
    assert old_logprobs(taught, updates[:1])[0].item() == -1.0  # one mini-batch: nobody has to score
    record = clipped_record(Algorithm(ratio=ratio), TOKENIZER, scored, updates)
    # b: exp(-1.5 + 2) and exp(-1 + 2); a: exp(-0.5 + 1)
    assert entries(record["high"]) == [("b", 2, 2), ("a", 1, 1)]
