"""Offline values: how often a model is right on each training problem before any RL, in a small JSON file.

`anabranch values` writes it, `algorithm.tracker.values` reads it. It says what it belongs to: the model's weights, how
problems are asked and answers found, and every problem by the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from anabranch.errors import DataError, explain
from anabranch.evaluation.folder import AnswerRecord
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem
from anabranch.tracking.files import write_atomic

KIND = "anabranch offline values"
SAMPLE_AGAIN = "make them for this run: anabranch values RECIPE"


@dataclass(frozen=True)
class OfflineValues:
    """What a file of offline values says."""

    path: str
    source: str
    """Name of the model."""
    weights: str
    """Its identity, see `model_identity`."""
    asked: Mapping[str, Any]
    """How problems are asked and answers found, see `way_of_asking`."""
    sampling: Mapping[str, Any]
    """How answers were sampled, see `way_of_sampling`."""
    keys: tuple[str, ...]
    """Identity of each problem."""
    right_P: tuple[float, ...]
    """Sum of the verdicts on its answers: how many were right."""
    samples_P: tuple[int, ...]
    """How many answers it got."""

    def check_problems(self, recipe: Recipe, problems: Sequence[Problem]) -> None:
        """Every problem must be known, and asked as it was then.

        Raises:
            DataError: one is not.
        """
        known = set(self.keys)
        missing = [problem for problem in problems if problem.key not in known]
        if missing:
            found = f"no value for {len(missing)} of {len(problems)} problems (the first: {missing[0].question[:60]!r})"
            raise DataError(explain(self.path, found, "offline values belong to the problems of the run", SAMPLE_AGAIN))
        differs = _differences(self.asked, way_of_asking(recipe))
        if differs:
            found = f"values of problems that were asked otherwise ({differs})"
            raise DataError(explain(self.path, found, "offline values belong to the prompts of the run", SAMPLE_AGAIN))

    def check_model(self, model: PreTrainedModel, source: str) -> None:
        """The model must be the one that answered.

        Raises:
            DataError: it is not.
        """
        if model_identity(model) != self.weights:
            found = f"values of another model ({self.source}; its weights are not those of {source})"
            raise DataError(explain(self.path, found, "offline values belong to the first model", SAMPLE_AGAIN))

    def sampled_otherwise(self, recipe: Recipe) -> str:
        """How sampling differs from the recipe's, for people; empty if it does not."""
        return _differences(self.sampling, way_of_sampling(recipe))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    return "; ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} here" for name in names)


def way_of_asking(recipe: Recipe) -> dict[str, Any]:
    """What decides, beside the problem itself, what the model is asked and which answers count as right."""
    prompt = recipe.prompt.model_dump(mode="json")
    return {
        **{f"prompt.{name}": text for name, text in prompt.items()},
        "answer.extract": list(recipe.answer.extract),
        "environment": None if recipe.environment is None else recipe.environment.model_dump(mode="json"),
    }


def way_of_sampling(recipe: Recipe) -> dict[str, Any]:
    """What decides how answers are drawn. Values that were sampled otherwise than training does are allowed."""
    settings = recipe.rollout.model_dump(mode="json", exclude={"prompts", "per_problem", "dynamic", "asynchronous"})
    return {f"rollout.{name}": value for name, value in settings.items()}


def model_identity(model: PreTrainedModel) -> str:
    """16 hex digits that stand for the weights rounded to bfloat16: the same in whatever dtype the model computes."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.named_parameters()):
        hashed.update(f"{name} {tuple(tensor.shape)}\n".encode())
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        hashed.update(rounded.view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def write(path: Path, recipe: Recipe, model: PreTrainedModel, records: Sequence[AnswerRecord]) -> None:
    """Write the values that judged answers come to.

    Raises:
        RunFolderError: the file cannot be written.
    """
    right: dict[str, float] = {}
    samples = Counter(record["key"] for record in records)
    for record in records:
        right[record["key"]] = right.get(record["key"], 0.0) + record["value"]
    content = {
        "kind": KIND,
        "version": 1,
        "model": {"source": recipe.model.source, "weights": model_identity(model)},
        "asked": way_of_asking(recipe),
        "sampling": {**way_of_sampling(recipe), "seed": recipe.seed},
        "problems": {key: [right[key], count] for key, count in samples.items()},
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read(path: str) -> OfflineValues:
    """The values in a file that `write` made.

    Raises:
        DataError: no such file, or not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        found = f"{error.strerror or error}"
        raise DataError(explain(path, found, "algorithm.tracker.values names a file", SAMPLE_AGAIN)) from error
    except ValueError as error:
        raise DataError(explain(path, f"no JSON ({error})", f"it holds {KIND}", SAMPLE_AGAIN)) from error
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("version") != 1:
        raise DataError(explain(path, "another kind of file", f"it holds {KIND}, version 1", SAMPLE_AGAIN))
    try:
        problems = content["problems"]
        return OfflineValues(
            path=path,
            source=content["model"]["source"],
            weights=content["model"]["weights"],
            asked=content["asked"],
            sampling={name: value for name, value in content["sampling"].items() if name != "seed"},
            keys=tuple(problems),
            right_P=tuple(float(right) for right, _ in problems.values()),
            samples_P=tuple(int(samples) for _, samples in problems.values()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(explain(path, f"a damaged file ({error!r})", f"it holds {KIND}", SAMPLE_AGAIN)) from error
