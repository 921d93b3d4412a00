"""Which of the units in flight a step takes, so that none is ever too old. Pure functions.

A unit is an answer, or a group of answers that are learned from together. It is begun in step b and may be learned from
in steps b to b + S (S: `max_staleness`), so b + S is its deadline. A step takes exactly B units; at the start of each
step as many are begun as bring those in flight back to C.

The bound. Call what is in flight *feasible* at step s if for every t at most (t - s + 1) B units have a deadline up to
t: that many the steps from s to t can take; with t = s - 1 it says that no deadline has passed. If C <= (S + 1) B, then
what is in flight when a step begins is always feasible:

* At step 0 all C deadlines are S, and C <= (S + 1) B.
* Step s takes its units only if what it leaves is feasible at s + 1. The units begun there have deadline s + 1 + S and
  count only for t >= s + 1 + S; there C <= (S + 1) B <= (t - s) B covers everything in flight.
* Step s can always do so once what it waits for is over: the B units with the earliest deadlines leave at most
  (t - s + 1) B - B = (t - s) B with a deadline up to t, or none.

So a step waits for rollouts and never for another step: nothing deadlocks as long as every rollout ends. And no token
that is learned from is more than S steps old; as weights change between steps only, its policy is at most S steps
behind the one that learns from it. S = 0 leaves C = B: nothing is in flight across an update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Standing:
    """A unit in flight, as far as this matters; older ones come first."""

    begun: int
    """The step in which it was begun."""
    number: int
    """Units are numbered in the order in which they were begun."""
    finished: bool = False


def choose(units: Iterable[Standing], batch: int, now: int, max_staleness: int | None) -> list[int] | None:
    """The units that step `now` takes, oldest first: finished ones, the oldest of them.

    Args:
        units: all in flight, feasible for step `now`.
        batch: B, how many it takes.
        now: the step.
        max_staleness: S, in steps; None: what the step does not take is given up, and grows no older.

    Returns:
        Their numbers; None: too few have finished, or what would be left could grow too old.
    """
    everything = sorted(units)
    chosen = [unit for unit in everything if unit.finished][:batch]
    if len(chosen) < batch:
        return None
    taken = {unit.number for unit in chosen}
    rest = [unit for unit in everything if unit.number not in taken]
    if max_staleness is not None and not feasible(rest, batch, now + 1, max_staleness):
        return None
    return [unit.number for unit in chosen]


def feasible(units: Sequence[Standing], batch: int, step: int, max_staleness: int) -> bool:
    """Whether steps from `step` on, B units each, can take all of them in time, see above."""
    deadlines = sorted(unit.begun + max_staleness for unit in units)
    return all(count <= (deadline - step + 1) * batch for count, deadline in enumerate(deadlines, start=1))
