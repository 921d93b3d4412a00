"""Numbers of a step's record that compare what engine and trainer found."""

import numpy as np
import torch

from anabranch.batching.credit import Credit
from anabranch.batching.pack import pack
from anabranch.modeling.attention import NAME
from anabranch.modeling.tiny import tiny_llama
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import text_order
from anabranch.train.lesson import Lesson
from anabranch.train.measure import engine_gap
from anabranch.train.trainer import Update, score


def alone(model, context, tokens):
    """Log-probs of `tokens` behind `context`, by transformers on the one flat sequence."""
    ids = torch.tensor([*context, *tokens])
    with torch.no_grad():
        logprob_TV = torch.log_softmax(model(ids[None], use_cache=False).logits[0, len(context) - 1 : -1], -1)
    return logprob_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def test_an_answer_that_forks_has_no_gap_between_engine_and_trainer():
    """Segment 3 goes on from segment 1, so it stands before segment 2 in the text: numbers must not change places."""
    model = tiny_llama()
    prompt, one, other, further = [5, 6, 7], [8, 9], [20, 21, 22], [30, 31, 32, 33]
    parts = ((one, 0, prompt), (other, 0, prompt), (further, 1, prompt + one))
    graph = StreamGraph(
        (
            Segment(prompt),
            *(Segment(own, (up,), [True] * len(own), alone(model, before, own)) for own, up, before in parts),
        )
    )
    assert text_order(graph) == [0, 1, 3, 2]
    rows = pack([graph], [0], row_tokens=64)
    model.set_attn_implementation(NAME)
    logprob_N = score(model, rows, graph.num_trained, temperature=1.0)
    nothing_N = torch.zeros(graph.num_trained)
    credit = Credit(nothing_N, nothing_N, torch.ones(1, dtype=torch.bool), torch.zeros(1), {})
    record = engine_gap(Lesson(credit, [rows], None, None), [Update(0.0, 0.0, {}, 0.0, graph.num_trained, logprob_N)])
    assert record["engine_gap_max"] < 1e-5
    assert np.ptp(logprob_N.numpy()) > 0.1  # in another order they would be far apart


def test_without_an_update_there_is_no_gap_to_report():
    credit = Credit(torch.zeros(0), torch.zeros(0), torch.ones(0, dtype=torch.bool), torch.zeros(0), {})
    assert engine_gap(Lesson(credit, [[]], None, None), []) == {}
