"""What every engine promises (see `anabranch.engines.base.Engine`): one suite for all of them.

A test module of an engine subclasses `EngineConformance` and gives it a fixture `subject`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.base import Engine, InFlight, Stream
from anabranch.errors import EngineError
from anabranch.modeling.attention import NAME
from anabranch.modeling.forward import row_logprobs
from anabranch.records import UNSAMPLED, Name, Request, Rollout, Sampling, StopReason
from anabranch.structure.layout import lay_out, targets

TOLERANCE = 1e-4
"""Largest gap between two log-probs of one token in float32."""

ENDS = (2, 10, 20, 30)
"""Stop tokens: with four of 64, random answers have many lengths."""


@dataclass(frozen=True)
class Subject:
    """An engine to test: how to start it, and the trainer's model whose weights it has (vocabulary 64, context 512)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    start: Callable[[int], Engine]
    """max_rows -> engine."""
    again: Callable[[], "Subject"]
    """A subject of its own with the same weights, which a test may change."""


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng((length, seed)).integers(4, 64, length).tolist())


def request(
    length: int,
    samples: int = 3,
    *,
    step: int = 0,
    seed: int = 0,
    first: int = 0,
    hold: bool = False,
    **sampling: object,
):
    settings = Sampling(**{"max_new_tokens": 12, "stop_tokens": ENDS, **sampling})  # type: ignore[arg-type]
    return Request(f"problem of {length}", prompt(length), samples, settings, seed, step, first, hold)


def answer(rollout: Rollout) -> list[int]:
    return rollout.graph.segments[1].tokens.tolist()


def generate(engine: Engine, requests: Sequence[Request]) -> dict[tuple[str, int], Rollout]:
    """All rollouts by problem and sample; each comes once."""
    found: dict[tuple[str, int], Rollout] = {}
    for rollout in engine.generate(requests):
        assert (rollout.problem_key, rollout.sample) not in found
        found[rollout.problem_key, rollout.sample] = rollout
    return found


def answers(engine: Engine, requests: Sequence[Request]) -> dict[tuple[str, int], list[int]]:
    return {name: answer(rollout) for name, rollout in generate(engine, requests).items()}


OBSERVATION = np.random.default_rng(5).integers(4, 64, 50).tolist()
"""What is said to the model between its turns: the first so many of these tokens."""


def drain(stream: Stream) -> list[Rollout]:
    """Everything that comes until nothing more can."""
    found = []
    while stream.ready:
        found += stream.advance()
    return found


def some(stream: Stream, steps: int) -> list[Rollout]:
    """What comes in so many steps, if there is something to do in them."""
    return [rollout for _ in range(steps) if stream.ready for rollout in stream.advance()]


def talk(stream: Stream, requests: Sequence[Request], *, said: int, turns: int) -> list[Rollout]:
    """Let every answer go on until it has had so many turns, or has no room for another."""
    for one in requests:
        stream.submit(one)
    found = []
    while stream.ready:
        for rollout in stream.advance():
            room = requests[0].sampling.max_new_tokens - rollout.num_answer_tokens
            if rollout.stop is StopReason.LENGTH:
                found.append(rollout)
            elif rollout.turns < turns and room > said:
                stream.go_on(rollout.name, OBSERVATION[:said])
            else:
                stream.drop([rollout.name])
                found.append(rollout)
    return found


@contextmanager
def plain(model: PreTrainedModel) -> Iterator[None]:
    """The model with transformers' own attention."""
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(NAME)


def trainer_logprobs(model: PreTrainedModel, rollout: Rollout, temperature: float) -> np.ndarray:
    layout = lay_out(rollout.graph)
    with torch.no_grad():
        return row_logprobs(model, layout, targets(layout), temperature=temperature)[0].numpy()


def plain_logprobs(model: PreTrainedModel, rollout: Rollout, temperature: float) -> np.ndarray:
    """Of the flat sequence, by nothing but transformers and log_softmax."""
    tokens_1T = torch.tensor([[*rollout.prompt_tokens.tolist(), *answer(rollout)]])
    with torch.no_grad(), plain(model):
        logprob_TV = torch.log_softmax(model(tokens_1T, use_cache=False).logits[0] / temperature, -1)
    first = len(rollout.prompt_tokens)
    return logprob_TV[first - 1 : -1].gather(1, tokens_1T[0, first:, None])[:, 0].numpy()


def check_agreement(subject: Subject, rollouts: Sequence[Rollout], temperature: float = 1.0) -> None:
    for rollout in rollouts:
        recorded = rollout.graph.segments[1].engine_logprob
        for theirs in (trainer_logprobs, plain_logprobs):
            assert np.abs(recorded - theirs(subject.model, rollout, temperature)).max() <= TOLERANCE


class EngineConformance:
    """Subclass it as `Test...` with a fixture `subject`."""

    # ------------------------------------------------------------------------------------------------- agreement

    @pytest.mark.parametrize(
        ("lengths", "samples", "max_rows", "temperature"),
        [
            ([5], 1, 128, 1.0),
            ([1, 40, 11], 3, 128, 1.0),
            ([70, 2, 33, 33], 3, 4, 0.7),  # rows leave, move and come while others go on
            ([17, 3], 40, 7, 1.5),
            ([20], 40, 64, 1.0),
        ],
    )
    def test_log_probs_are_those_of_the_trainer_and_of_plain_transformers(
        self, subject, lengths, samples, max_rows, temperature
    ):
        requests = [
            replace(request(length, samples, temperature=temperature), problem_key=f"{number}")
            for number, length in enumerate(lengths)
        ]
        found = generate(subject.start(max_rows), requests)
        assert len(found) == len(lengths) * samples
        check_agreement(subject, list(found.values()), temperature)

    def test_log_probs_are_over_the_whole_vocabulary_also_with_top_k_and_top_p(self, subject):
        found = generate(subject.start(4), [request(9, 6, top_k=5, top_p=0.8, temperature=0.8)])
        check_agreement(subject, list(found.values()), 0.8)

    def test_log_probs_of_greedy_answers_are_those_at_temperature_1(self, subject):
        (rollout,) = generate(subject.start(4), [request(9, 1, temperature=0.0)]).values()
        check_agreement(subject, [rollout])

    # --------------------------------------------------------------------------------------------------- drawing

    def test_greedy_takes_the_most_probable_token(self, subject):
        (rollout,) = generate(subject.start(4), [request(9, 1, temperature=0.0)]).values()
        tokens_1T = torch.tensor([[*rollout.prompt_tokens.tolist(), *answer(rollout)]])
        with torch.no_grad(), plain(subject.model):
            best_T = subject.model(tokens_1T, use_cache=False).logits[0].argmax(-1)
        assert answer(rollout) == best_T[8:-1].tolist()

    def test_tokens_outside_top_k_never_come(self, subject):
        found = generate(subject.start(16), [request(9, 30, top_k=2)])
        for rollout in found.values():
            tokens_1T = torch.tensor([[*rollout.prompt_tokens.tolist(), *answer(rollout)]])
            with torch.no_grad(), plain(subject.model):
                best_TK = subject.model(tokens_1T, use_cache=False).logits[0].topk(3).indices  # one more: rounding
            for token, best in zip(answer(rollout), best_TK[8:-1].tolist(), strict=True):
                assert token in best
        assert len({answer(rollout)[0] for rollout in found.values()}) == 2

    def test_requests_with_different_settings_run_side_by_side(self, subject):
        requests = [
            request(5, 4),
            request(6, 2, temperature=0.5, top_k=3),
            request(7, 3, max_new_tokens=3, stop_tokens=()),
            request(8, 2, temperature=0.0),
            request(9, 1, top_p=0.5, stop_tokens=(7,)),
        ]
        together = answers(subject.start(128), requests)
        apart = {}
        for one in requests:
            apart.update(answers(subject.start(128), [one]))
        assert together == apart

    # ------------------------------------------------------------------------------------- what a rollout depends on

    def test_a_rollout_does_not_depend_on_its_neighbours(self, subject):
        requests = [request(length, 5) for length in (6, 30, 13)]
        reference = answers(subject.start(128), requests)
        for max_rows, order in [(128, [2, 0, 1]), (1, [0, 1, 2]), (4, [1, 2, 0]), (16, [0, 2, 1])]:
            assert answers(subject.start(max_rows), [requests[i] for i in order]) == reference
        alone = answers(subject.start(128), [replace(requests[1], num_samples=1, first_sample=3)])
        assert alone == {("problem of 30", 3): reference["problem of 30", 3]}

    def test_the_same_names_give_the_same_tokens_again_also_from_one_engine(self, subject):
        engine = subject.start(8)
        first = answers(engine, [request(6, 10)])
        assert answers(engine, [request(6, 10)]) == first

    def test_another_seed_step_problem_or_sample_gives_other_draws(self, subject):
        engine = subject.start(8)
        base = request(6, 1, stop_tokens=())
        others = [
            base,
            replace(base, seed=1),
            replace(base, step=1),
            replace(base, problem_key="another"),
            replace(base, first_sample=1),
        ]
        drawn = {tuple(tokens) for one in others for tokens in answers(engine, [one]).values()}
        assert len(drawn) == len(others)

    def test_first_sample_goes_on_where_another_request_stopped(self, subject):
        engine = subject.start(8)
        whole = answers(engine, [request(6, 6)])
        parts = answers(engine, [request(6, 2), request(6, 4, first=2)])
        assert parts == whole
        assert sorted(sample for _, sample in parts) == list(range(6))

    # ------------------------------------------------------------------------------------ what comes, and how it ends

    def test_every_requested_sample_comes_exactly_once(self, subject):
        requests = [request(4, 7), request(5, 1), request(6, 20, first=100), request(7, 2)]
        found = generate(subject.start(3), requests)  # `generate` refuses repeats
        assert set(found) == {
            (one.problem_key, one.first_sample + sample) for one in requests for sample in range(one.num_samples)
        }
        for one in requests:
            assert found[one.problem_key, one.first_sample].prompt_tokens.tolist() == list(one.prompt_tokens)

    def test_no_request_gives_no_rollout(self, subject):
        assert list(subject.start(8).generate([])) == []

    def test_an_answer_ends_with_a_stop_token_which_is_kept_or_at_the_limit(self, subject):
        found = generate(subject.start(16), [request(9, 40)])
        assert {rollout.stop for rollout in found.values()} == {StopReason.EOS, StopReason.LENGTH}
        for rollout in found.values():
            tokens = answer(rollout)
            assert not set(tokens[:-1]) & set(ENDS)
            assert (rollout.stop is StopReason.EOS) == (tokens[-1] in ENDS)
            assert rollout.truncated == (rollout.stop is StopReason.LENGTH)
            assert len(tokens) <= 12
            assert rollout.stop is StopReason.EOS or len(tokens) == 12

    def test_a_stop_token_at_the_limit_is_a_stop_token(self, subject):
        tokens = answers(subject.start(4), [request(9, 1, stop_tokens=())])["problem of 9", 0]
        first = tokens.index(tokens[5])
        again = generate(subject.start(4), [request(9, 1, stop_tokens=(tokens[first],), max_new_tokens=first + 1)])
        assert again["problem of 9", 0].stop is StopReason.EOS

    def test_an_answer_ends_with_the_token_that_completes_a_stop_string(self, subject):
        engine = subject.start(16)
        free = generate(engine, [request(9, 20, stop_tokens=())])
        for rollout in free.values():
            text = subject.tokenizer.decode(answer(rollout))
            for start, stop in [(0, 1), (3, 6), (5, 12)]:  # one token, several, up to the limit
                string = text[start:stop]
                ending = request(9, 1, first=rollout.sample, stop_tokens=(), stop_strings=("no such text", string))
                (cut,) = generate(engine, [ending]).values()
                kept = answer(cut)
                assert cut.stop is StopReason.STOP_STRING
                assert kept == answer(rollout)[: len(kept)]  # until then, it is the same answer
                assert string in subject.tokenizer.decode(kept)
                assert string not in subject.tokenizer.decode(kept[:-1])

    def test_the_text_is_the_answer_without_special_tokens(self, subject):
        for rollout in generate(subject.start(16), [request(9, 20)]).values():
            assert rollout.text == subject.tokenizer.decode(answer(rollout), skip_special_tokens=True)

    def test_the_graph_is_a_prompt_and_a_trained_answer(self, subject):
        engine = subject.start(4)
        engine.load_weights(5)
        for rollout in generate(engine, [request(9, 4)]).values():
            before, after = rollout.graph.segments
            assert after.parents == (0,)
            assert not before.trained.any() and np.isnan(before.engine_logprob).all()
            assert after.trained.all() and np.isfinite(after.engine_logprob).all()
            assert set(before.policy_version) == {UNSAMPLED} and set(after.policy_version) == {5}

    # ------------------------------------------------------------------------------------------- what cannot be served

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (request(600), "context is 512"),
            (request(505), "505 tokens \\+ 12 new ones"),
            (request(9, 0), "0 samples"),
            (request(9, max_new_tokens=0), "0 new tokens"),
            (replace(request(9), prompt_tokens=()), "prompt of 0"),
        ],
    )
    def test_what_can_never_be_served_is_refused_before_anything_is_generated(self, subject, bad, message):
        engine = subject.start(4)
        with pytest.raises(EngineError, match=message):
            engine.generate([request(9), bad])
        assert set(engine.times.values()) == {0.0}

    def test_a_prompt_and_answer_that_just_fit_are_served(self, subject):
        (rollout,) = generate(subject.start(4), [request(500, 1, stop_tokens=())]).values()
        assert rollout.graph.num_tokens == 512
        check_agreement(subject, [rollout])

    def test_the_time_of_every_phase_is_counted_since_the_last_weights(self, subject):
        engine = subject.start(4)
        list(engine.generate([request(9, 2)]))
        assert set(engine.times) == {"prefill", "decode", "draw"}
        assert min(engine.times.values()) > 0
        engine.load_weights(1)
        assert set(engine.times.values()) == {0.0}

    # ------------------------------------------------------------------------------------------- streams: coming, going

    def test_a_stream_gives_the_rollouts_of_its_requests_whenever_they_come(self, subject):
        whole = {
            (one.problem_key, i): t
            for one in (request(6, 5), request(30, 4))
            for (_, i), t in answers(subject.start(8), [one]).items()
        }
        stream = subject.start(4).open()
        stream.submit(request(6, 5))
        found = some(stream, 3)
        stream.submit(request(30, 4))
        found += drain(stream)
        assert {(rollout.problem_key, rollout.sample): answer(rollout) for rollout in found} == whole
        assert len(found) == 9 and not stream.ready

    def test_a_name_that_is_in_flight_is_refused(self, subject):
        stream = subject.start(4).open()
        stream.submit(request(6, 3))
        with pytest.raises(ValueError, match="in flight already"):
            stream.submit(request(6, 1, first=2))
        stream.submit(request(6, 1, step=1))
        assert len(drain(stream)) == 4

    def test_what_is_dropped_never_comes_and_changes_nothing_for_the_others(self, subject):
        expected = answers(subject.start(4), [request(6, 9)])
        for advanced in (0, 1, 3):  # waiting, just begun, under way
            stream = subject.start(4).open()
            stream.submit(request(6, 9))
            found = some(stream, advanced)
            given_up = {Name("problem of 6", 0, sample) for sample in (0, 2, 3, 8)} - {r.name for r in found}
            stream.drop(given_up)
            found += drain(stream)
            kept = {name: tokens for name, tokens in expected.items() if Name(name[0], 0, name[1]) not in given_up}
            assert {(rollout.problem_key, rollout.sample): answer(rollout) for rollout in found} == kept

    # --------------------------------------------------------------------------------------------------- several turns

    @pytest.mark.parametrize("said", [1, 5, 40])
    def test_a_held_answer_goes_on_behind_what_was_said_to_it(self, subject, said):
        stream = subject.start(5).open()
        found = talk(
            stream,
            [request(9, 6, max_new_tokens=100, hold=True), request(31, 3, max_new_tokens=100, hold=True)],
            said=said,
            turns=3,
        )
        assert len(found) == 9 and not stream.ready
        for rollout in found:
            segments = rollout.graph.segments
            assert [segment.parents for segment in segments[1:]] == [(place,) for place in range(len(segments) - 1)]
            assert rollout.turns == len(segments) // 2 > 1
            for written, observed in zip(segments[1::2], segments[2::2], strict=False):
                assert written.trained.all() and np.isfinite(written.engine_logprob).all()
                assert observed.tokens.tolist() == OBSERVATION[:said] and not observed.trained.any()
                assert np.isnan(observed.engine_logprob).all() and set(observed.policy_version) == {UNSAMPLED}
            layout = lay_out(rollout.graph)
            recorded = layout.engine_logprob_T[targets(layout)]
            assert np.abs(recorded - trainer_logprobs(subject.model, rollout, 1.0)).max() <= TOLERANCE

    def test_text_is_what_the_model_wrote_and_the_transcript_is_everything(self, subject):
        (rollout,) = talk(subject.start(5).open(), [request(9, 1, max_new_tokens=100, hold=True)], said=3, turns=2)
        first, said, second = rollout.graph.segments[1:]
        decode = partial(subject.tokenizer.decode, skip_special_tokens=True)
        assert rollout.text == decode(first.tokens) + decode(second.tokens)
        assert rollout.transcript == decode([*first.tokens, *said.tokens, *second.tokens])

    def test_a_stop_string_in_what_was_said_does_not_end_the_turn_behind_it(self, subject):
        said = subject.tokenizer.decode(OBSERVATION[:4])
        one = request(9, 1, max_new_tokens=60, stop_tokens=(), stop_strings=(said,), hold=True)
        plain = request(9, 1, max_new_tokens=6, hold=True)
        stream = subject.start(5).open()
        stream.submit(replace(plain, sampling=replace(one.sampling, stop_tokens=tuple(range(64)))))
        (held,) = drain(stream)
        stream.go_on(held.name, OBSERVATION[:4])
        (again,) = drain(stream)
        assert again.stop is StopReason.EOS and len(again.graph.segments[-1]) == 1

    def test_held_answers_leave_room_for_no_more_than_the_engine_may_hold(self, subject):
        stream = subject.start(2).open()
        stream.submit(request(9, 3, max_new_tokens=50, stop_tokens=tuple(range(64)), hold=True))
        held = drain(stream)
        assert {rollout.sample for rollout in held} == {0, 1}  # each stopped at its first token, and keeps its place
        stream.drop([held[0].name])
        assert [rollout.sample for rollout in drain(stream)] == [2]

    def test_answers_at_the_limit_are_not_held(self, subject):
        stream = subject.start(2).open()
        stream.submit(request(9, 2, max_new_tokens=3, stop_tokens=(), hold=True))
        assert [rollout.stop for rollout in drain(stream)] == [StopReason.LENGTH] * 2
        stream.submit(request(9, 2))  # the names are free again

    # ------------------------------------------------------------------------------------- weights change under answers

    def test_with_recomputation_new_weights_count_for_all_that_was_read(self, subject):
        for recompute in (True, False):
            subject_ = subject.again()
            engine = subject_.start(12)
            stream = engine.open(recompute=recompute)
            stream.submit(request(9, 12, max_new_tokens=30, hold=True))
            held = [rollout for rollout in some(stream, 6) if rollout.stop is StopReason.EOS]
            assert 0 < len(held) < 12
            with torch.no_grad():
                for parameter in subject_.model.parameters():
                    parameter.mul_(1.2)
            engine.load_weights(1)
            for rollout in held:
                stream.go_on(rollout.name, OBSERVATION[:3])
            gaps = []
            for rollout in drain(stream):
                layout = lay_out(rollout.graph)
                place = targets(layout)
                fresh = layout.policy_version_T[place] == 1
                gap = np.abs(layout.engine_logprob_T[place] - trainer_logprobs(subject_.model, rollout, 1.0))
                gaps.append(gap[fresh])
            gap = np.concatenate(gaps)
            assert len(gap) > 8
            assert (gap.max() <= TOLERANCE) == recompute  # kept keys and values are those of the old weights

    # ------------------------------------------------------------------------------------------------- stored and again

    @pytest.mark.parametrize("recompute", [False, True])
    @pytest.mark.parametrize("advanced", [0, 1, 7, 15])
    def test_a_stream_that_is_stored_and_restored_goes_on_to_the_same_bits(self, subject, recompute, advanced):
        requests = [
            request(9, 6, max_new_tokens=40, hold=True),
            request(31, 3, max_new_tokens=40, hold=True),
            request(12, 4, max_new_tokens=9),
        ]

        def go_on(stored: bool) -> list[Rollout]:
            subject_ = subject.again()
            engine = subject_.start(8)
            stream = engine.open(recompute=recompute)
            for one in requests:
                stream.submit(one)
            found = some(stream, advanced)
            with torch.no_grad():
                for parameter in subject_.model.parameters():
                    parameter.mul_(1.1)
            engine.load_weights(1)
            if stored:
                kept = stream.export()
                state = json.loads(json.dumps(kept.state))
                tensors = {name: tensor.clone() for name, tensor in kept.tensors.items()}
                engine = subject_.start(8)
                engine.load_weights(1)
                stream = engine.open(recompute=recompute)
                stream.restore(InFlight(state, tensors))
            held = [rollout for rollout in found if rollout.stop is not StopReason.LENGTH and rollout.sample < 6]
            for rollout in held:
                if rollout.problem_key != "problem of 12":
                    stream.go_on(rollout.name, OBSERVATION[:2])
            return found + drain(stream)

        straight, resumed = go_on(False), go_on(True)
        assert [rollout.name for rollout in straight] == [rollout.name for rollout in resumed]
        assert [rollout.graph.segments for rollout in straight] == [rollout.graph.segments for rollout in resumed]
