"""No option does nothing: every field of every preset is flipped, and something observable changes.

`flips.FLIPS` names other values for each field of each part that a recipe can hold; it must be complete. A flip that
the recipe's checks refuse is fine where the refusal names that field, or a neighbour of it in the same part.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

from anabranch.errors import RecipeError
from anabranch.evaluation import offline
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.presets import PRESETS, load
from anabranch.recipe.overrides import apply
from anabranch.recipe.schema import forms, item, nullable
from anabranch.recipe.tree import Recipe
from anabranch.tasks.base import open_task

pytest.register_assert_rewrite("lab")
sys.path.insert(0, str(Path(__file__).parent))
from flips import FEW, FLIPS, SMALL, Flip, Where  # noqa: E402
from lab import Lab, Seen, differs, problems, world  # noqa: E402

sys.path.remove(str(Path(__file__).parent))

RUNS_WITH = "lite_ppo"
"""The preset whose whole runs are compared."""


def parts(part: type[BaseModel] = Recipe, seen: frozenset[type[BaseModel]] = frozenset()) -> Iterator[type[BaseModel]]:
    """Every part that a recipe can hold, the recipe itself first."""
    yield part
    for field in part.model_fields.values():
        for form in forms(item(field.annotation) or field.annotation):
            if form not in seen:
                seen |= {form}
                yield from parts(form, seen)


def is_option(part: type[BaseModel], name: str) -> bool:
    """Whether a field has other values of its own: not one name only, and not a part that is always there."""
    annotation = part.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return len(get_args(annotation)) > 1
    choices = forms(annotation)
    return not choices or nullable(annotation) or len(choices) > 1


def options() -> list[str]:
    """`Class.field` for every option."""
    found = {part.__name__: part for part in parts()}
    return [f"{name}.{field}" for name, part in found.items() for field in part.model_fields if is_option(part, field)]


@pytest.fixture(scope="module")
def places(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What MODEL, TRAIN, HELD_OUT and OTHER_MODEL stand for in `flips`."""
    home = tmp_path_factory.mktemp("places")
    tokenizer = character_tokenizer("".join(map(chr, range(ord(" "), ord("~") + 1))))
    for name, seed in (("model", 0), ("other", 9)):
        tiny_llama(len(tokenizer), hidden=16, layers=1, positions=256, seed=seed).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    write_values(home, sums / "train.jsonl")
    return {
        "VALUES": str(home / "values.json"),
        "OTHER_MODEL": str(home / "other"),
        "MODEL": str(home / "model"),
        "TRAIN": str(sums / "train.jsonl"),
        "HELD_OUT": str(sums / "held_out.jsonl"),
    }


def write_values(home: Path, train: Path) -> None:
    """Offline values of the training problems by the tiny model: right in 0 to 2 of 4 answers."""
    recipe = apply(load("lite_ppo"), [placed(text, {"MODEL": str(home / "model"), "TRAIN": str(train)})
                                      for text in SMALL])  # fmt: skip
    model = load_streaming(recipe.model.source, torch.float32, torch.device("cpu"))
    problems = open_task(recipe.data, recipe.answer).problems
    records: list[Any] = [
        {"key": problem.key, "value": float(sample < number % 3)}
        for number, problem in enumerate(problems)
        for sample in range(4)
    ]
    offline.write(home / "values.json", recipe, model, records)


@pytest.fixture(scope="module")
def lab(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """See `lab.Lab`."""
    found = Lab(places["MODEL"], tmp_path_factory.mktemp("lab"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def look(lab: Lab, places: dict[str, str]):
    """`look(preset, overrides, where, step)`: what is observed, each thing once. Refused: `RecipeError`."""

    @cache
    def small(preset: str) -> Recipe:
        return apply(load(preset), [placed(text, places) for text in SMALL])

    found: dict[str, Seen] = {}

    def looked(preset: str, overrides: tuple[str, ...], where: Where, step: int) -> tuple[Recipe, Seen]:
        few = FEW if where is Where.RUN else ()
        recipe = apply(small(preset), [placed(text, places) for text in (*few, *overrides)])
        same = recipe if where is Where.RUN else recipe.model_copy(update={"name": ""})  # no step can see the name
        key = f"{where} {step} {same!r}"
        if key not in found:
            if where is Where.DATA:
                found[key] = problems(recipe)
            elif where is Where.WORLD:
                found[key] = world(recipe)
            elif where is Where.RUN:
                found[key] = lab.run(recipe)
            else:
                found[key] = lab.step(recipe, step, fresh=where is Where.ENGINE)
        return recipe, found[key]

    return looked


def placed(text: str, places: dict[str, str]) -> str:
    """With the paths that the words in capitals stand for."""
    return re.sub(r"\b(OTHER_MODEL|MODEL|TRAIN|HELD_OUT|VALUES)\b", lambda match: places[match[0]], text)


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> None:
    """Runs set torch's threads and ask for deterministic algorithms."""


def test_every_option_has_another_value_to_try():
    assert sorted(FLIPS) == sorted(options())


def test_every_form_of_a_part_is_tried():
    texts = " ".join(
        [*SMALL, *(text for flips in FLIPS.values() for flip in flips for text in (flip.change, *flip.given))]
    )
    for part in parts():
        for name, field in part.model_fields.items():
            names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            for value in names if len(names) > 1 else ():
                default = field.default == value
                assert default or re.search(rf"\b{name}(=|: ){value}\b", texts), f"{part.__name__}.{name}={value}"


def test_the_small_state_has_what_the_flips_need(look):
    """Answers right and wrong, short and cut, groups that agree and that do not: else a flip could not show."""
    _, seen = look("lite_ppo", (), Where.STEP, 1)
    record, answers = seen["record"], seen["answers"]
    assert 0 < record["accuracy"] < 1
    assert 0 < record["truncated"] < 1
    assert record["dead_groups"] < 1
    assert len({answer["tokens"] for answer in answers}) > 2
    assert {answer["verdict"] for answer in answers} >= {"correct", "wrong", "no_answer"}
    assert record["clip_low"] > 0
    assert record["clip_high"] > 0
    _, whole = look(RUNS_WITH, (), Where.RUN, 1)
    assert "error" not in whole
    assert all(record["grad_norm"] > 0 for record in whole["metrics"])


@pytest.mark.parametrize("where", [Where.STEP, Where.ENGINE, Where.RUN])
def test_the_same_recipe_looks_the_same_twice(where, look):
    """Else a flip would seem to change something that changes by itself."""
    once, again = (look(RUNS_WITH, (f"save.every={every}",), where, 1)[1] for every in (50, 51))
    assert not differs(once, again)


@pytest.mark.parametrize("option", FLIPS)
def test_no_option_is_dead(option, look):
    shown = 0
    for flip in FLIPS[option]:
        for preset in [RUNS_WITH] if flip.where in (Where.RUN, Where.DATA, Where.WORLD) else PRESETS:
            shown += shows(look, preset, option, flip)
    assert shown, "refused in every preset"


def shows(look, preset: str, option: str, flip: Flip) -> bool:
    """Whether a flip changed something; False where it was refused, or is what the preset has already."""
    where = f"{preset} with {list(flip.given)}: {flip.change}"
    try:
        before, seen_before = look(preset, flip.given, flip.where, flip.step)
        after, seen_after = look(preset, (*flip.given, flip.change), flip.where, flip.step)
    except RecipeError as error:
        assert names_the_part(str(error), flip), f"{where} is refused without naming it:\n{error}"
        return False
    if before == after:
        return False
    assert differs(seen_before, seen_after), f"{where} changes nothing"
    return True


def names_the_part(message: str, flip: Flip) -> bool:
    """Whether a refusal names the field that was flipped, or a neighbour in the same part."""
    keys = [text.partition("=")[0] for text in (flip.change, *flip.given)]
    return any(re.search(rf"^{re.escape(key.rpartition('.')[0] or key)}\b", message, re.MULTILINE) for key in keys)
