"""The environments of a recipe, opened for a run or an evaluation and closed behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.environments.catalog import open_world
from anabranch.environments.runner import Runner
from anabranch.modeling.load import stop_token_ids
from anabranch.modeling.turns import turn_renderer
from anabranch.recipe.tree import EnvironmentSettings


@contextmanager
def environments(
    settings: EnvironmentSettings | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Iterator[Runner | None]:
    """A runner of environments with these settings; None if there are none.

    Args:
        settings: of a recipe.
        tokenizer: of the model: its chat template is what environments that say messages speak in.
        model: names the tokens that end a turn.

    Raises:
        WorldError: they cannot be had on this machine.
    """
    if settings is None:
        yield None
        return
    with Runner(open_world(settings, turn_renderer(tokenizer, stop_token_ids(tokenizer, model)))) as runner:
        yield runner
