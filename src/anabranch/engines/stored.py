"""Records of the engine as plain JSON and back, exactly: what is in flight when a checkpoint is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from anabranch.records import Name, Request, Rollout, Sampling, Segment, StopReason, StreamGraph

Json = dict[str, Any]


def request_to_json(request: Request) -> Json:
    """Plain JSON types."""
    return asdict(request)


def request_from_json(stored: Mapping[str, Any]) -> Request:
    """The inverse of `request_to_json`."""
    sampling = dict(stored["sampling"])
    for name in ("stop_tokens", "stop_strings"):
        sampling[name] = tuple(sampling[name])
    prompt = tuple(stored["prompt_tokens"])
    return Request(**{**stored, "sampling": Sampling(**sampling), "prompt_tokens": prompt})


def name_to_json(name: Name) -> Json:
    """Plain JSON types."""
    return asdict(name)


def name_from_json(stored: Mapping[str, Any]) -> Name:
    """The inverse of `name_to_json`."""
    return Name(**stored)


def rollout_to_json(rollout: Rollout) -> Json:
    """Plain JSON types; a number that is not there is null."""
    flat = {field.name: getattr(rollout, field.name) for field in fields(rollout) if field.name != "graph"}
    return {**flat, "stop": rollout.stop.value, "graph": [_segment_to_json(s) for s in rollout.graph.segments]}


def rollout_from_json(stored: Mapping[str, Any]) -> Rollout:
    """The inverse of `rollout_to_json`."""
    graph = StreamGraph(tuple(_segment_from_json(segment) for segment in stored["graph"]))
    changed = {"stop": StopReason(stored["stop"]), "graph": graph, "outcomes": tuple(stored["outcomes"])}
    return Rollout(**{**stored, **changed})


def _segment_to_json(segment: Segment) -> Json:
    logprobs = [None if math.isnan(value) else value for value in segment.engine_logprob.tolist()]
    return {
        "tokens": segment.tokens.tolist(),
        "parents": list(segment.parents),
        "trained": segment.trained.tolist(),
        "engine_logprob": logprobs,
        "policy_version": segment.policy_version.tolist(),
    }


def _segment_from_json(stored: Mapping[str, Any]) -> Segment:
    logprobs = [math.nan if value is None else value for value in stored["engine_logprob"]]
    return Segment(**{**stored, "parents": tuple(stored["parents"]), "engine_logprob": logprobs})
