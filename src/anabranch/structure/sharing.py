"""Answers to one prompt as one graph, so that the prompt is stored and computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anabranch.errors import GraphError, explain
from anabranch.records import Segment, StreamGraph


def share_prompt(graphs: Sequence[StreamGraph]) -> tuple[StreamGraph, list[int]]:
    """Merge graphs whose segment 0 is the same prompt.

    A prompt of P tokens with N answers of R tokens then costs P + N * R tokens, not N * (P + R).

    Args:
        graphs: one per answer, each with a single root, segment 0.

    Returns:
        The merged graph, and for every one of its segments the index of the answer it came from (-1: the prompt).

    Raises:
        GraphError: no graph; the prompts differ; a graph has another root; or several answers share a prompt with
            trained tokens, which each of them would count as its own.
    """
    if not graphs:
        raise GraphError(explain("share_prompt", "no graph", "a group has one or more answers", "leave the group out"))
    prompt = graphs[0].segments[0]
    if len(graphs) > 1 and any(graph.segments[0].trained.any() for graph in graphs):
        raise GraphError(
            explain(
                "share_prompt", "trained tokens in a prompt", "a shared prompt is read, not learned", "untrain them"
            )
        )
    segments: list[Segment] = [prompt]
    owners = [-1]
    for owner, graph in enumerate(graphs):
        if not np.array_equal(graph.segments[0].tokens, prompt.tokens):
            raise GraphError(
                explain(f"graph {owner}", "another prompt", "only answers to one prompt share it", "group them")
            )
        offset = len(segments) - 1
        for segment in graph.segments[1:]:
            if not segment.parents:
                raise GraphError(
                    explain(f"graph {owner}", "a second root", "only the prompt is a root", "give it a parent")
                )
            parents = tuple(parent + offset if parent else 0 for parent in segment.parents)
            segments.append(replace(segment, parents=parents))
            owners.append(owner)
    return StreamGraph(tuple(segments)), owners
