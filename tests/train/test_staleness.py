"""No rollout that a step learns from is older than allowed, whatever finishes when, and no step waits for ever."""

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.train.staleness import Standing, choose, feasible


def over(begun: int, *numbers: int) -> list[Standing]:
    return [Standing(begun, number, finished=True) for number in numbers]


def under_way(begun: int, *numbers: int) -> list[Standing]:
    return [Standing(begun, number) for number in numbers]


def test_a_step_takes_the_first_that_finish():
    assert choose([*under_way(0, 0, 1), *over(0, 2, 3)], 2, 0, 1) == [2, 3]


def test_a_step_waits_while_too_few_have_finished():
    assert choose([*under_way(0, 0, 1, 2), *over(0, 3)], 2, 0, 1) is None


def test_a_step_waits_for_those_that_would_grow_too_old():
    # Begun in step 0, at most 1 step old: step 1 must take both, although 2 and 3 are over already.
    late = under_way(0, 0, 1)
    assert choose([*late, *over(1, 2, 3)], 2, 1, 1) is None
    assert choose([*over(0, 0), *under_way(0, 1), *over(1, 2, 3)], 2, 1, 1) is None
    assert choose([*over(0, 0, 1), *over(1, 2, 3)], 2, 1, 1) == [0, 1]
    # With 2 steps allowed they may wait: steps 2 takes them.
    assert choose([*late, *over(1, 2, 3)], 2, 1, 2) == [2, 3]


def test_a_step_looks_further_ahead_than_the_next_one():
    # B = 1, at most 2 steps: 0, 1 and 2 were begun in step 0, so steps 0, 1 and 2 must take one of them each.
    assert choose([*under_way(0, 0, 1, 2)], 1, 0, 2) is None
    assert choose([*under_way(0, 0, 1), *over(0, 2)], 1, 0, 2) == [2]
    # Step 1 has 0 and 1 of step 0 and 3 of step 1. Taking 3 would leave two for step 2, which takes one.
    assert choose([*under_way(0, 0, 1), *over(1, 3)], 1, 1, 2) is None
    assert choose([*over(0, 0), *under_way(0, 1), *over(1, 3)], 1, 1, 2) == [0]


def test_of_those_that_are_over_the_oldest_are_taken():
    assert choose([*over(3, 7, 9), *over(2, 5), *over(3, 8)], 2, 3, 4) == [5, 7]


def test_what_is_feasible_is_counted_deadline_by_deadline():
    assert feasible(under_way(0, 0, 1), 2, 1, 1)
    assert not feasible(under_way(0, 0, 1, 2), 2, 1, 1)
    assert feasible([*under_way(0, 0, 1), *under_way(1, 2, 3)], 2, 1, 1)
    assert not feasible(under_way(0, 0), 2, 2, 1)  # its deadline, step 1, has passed
    assert feasible([], 1, 5, 0)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), batch=st.integers(1, 5), staleness=st.integers(0, 4))
def test_nothing_is_ever_older_than_allowed_and_every_step_ends(data, batch, staleness):
    capacity = data.draw(st.integers(batch, (staleness + 1) * batch), "capacity")
    begun: dict[int, int] = {}
    finished: set[int] = set()
    taken: list[int] = []
    for step in range(8):
        for number in range(len(begun) + len(taken), len(begun) + len(taken) + capacity - len(begun)):
            begun[number] = step
        while True:
            standing = [Standing(step_, number, number in finished) for number, step_ in begun.items()]
            chosen = choose(standing, batch, step, staleness)
            if chosen is not None:
                break
            running = sorted(set(begun) - finished)
            assert running, "the step waits, and nothing is left to wait for"
            finished.add(data.draw(st.sampled_from(running), "finishes"))
        assert len(set(chosen)) == batch
        assert set(chosen) <= finished
        for number in chosen:
            assert step - begun.pop(number) <= staleness
        taken += chosen
    assert len(taken) == len(set(taken)) == 8 * batch
