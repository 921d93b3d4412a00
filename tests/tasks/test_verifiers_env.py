"""Without the `verifiers` package its problems and environments are refused with the command that installs it."""

import sys

import pytest

from anabranch.environments.verifiers_world import VerifiersWorld
from anabranch.errors import AnabranchError, DataError
from anabranch.recipe.tree import Answer, Verifiers, VerifiersTasks
from anabranch.tasks.base import open_task
from anabranch.tasks.verifiers_env import question


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.delitem(sys.modules, "verifiers.v1", raising=False)
    for opening in (
        lambda: open_task(VerifiersTasks(taskset="sums"), Answer()),
        lambda: VerifiersWorld(Verifiers(options={"taskset": {"id": "sums"}}), str),
    ):
        with pytest.raises(AnabranchError, match=r"no package 'verifiers'.*\n.*pip install 'anabranch\[verifiers\]'"):
            opening()


def test_a_question_is_all_that_is_said_before_the_model_speaks():
    assert question("sums", {"prompt": "q", "system_prompt": None}) == "q"
    two = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert question("sums", {"prompt": two, "system_prompt": "first"}) == "first\n\ns\n\nq"


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ],
)
def test_a_prompt_that_is_more_or_less_than_text_is_refused(prompt):
    with pytest.raises(DataError, match="choose a"):
        question("sums", {"prompt": prompt, "system_prompt": None})
