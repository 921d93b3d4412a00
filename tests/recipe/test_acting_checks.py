"""Settings of an environment that cannot act are refused, each with a fix that works; what can act is accepted."""

import re
import subprocess
import sys

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Calculator, Latency, PythonTool, Recipe

BASE = load("grpo")


def changed(*changes: str) -> Recipe:
    return apply(BASE, changes)


@pytest.mark.parametrize(
    ("changes", "where", "fix"),
    [
        ("environment={kind: python, turns: 9999}", "environment.turns: found 9999", "environment.turns="),
        ("environment={kind: python} rollout.stop_strings=[</code>]", "rollout.stop_strings.0: found </code>", "[]"),
        ("environment={kind: python} rollout.stop_strings=[x,code]", "rollout.stop_strings.1: found code", "[]"),
        ("environment={kind: python} rollout.stop_strings=[a</code>]", "before this can be complete", "[]"),
        ("environment={kind: latency, stop: b} rollout.stop_strings=[b]", "rollout.stop_strings.0: found b", "[]"),
        ("environment={kind: calculator, open: a, close: ab, reply: x}", "environment.reply: found x", "reply=' {}'"),
        ("environment={kind: calculator, reply: '{} {}'}", "environment.reply: found {} {}", "reply=' {}'"),
        ("environment={kind: calculator, open: ab, close: b}", "would end as it begins", "environment.close=</calc>"),
        ("environment={kind: calculator, open: '', close: ' + '}", "environment.close: found  + ", "close='='"),
        ("environment={kind: calculator, open: '('}", "environment.open: found (", "environment.open=<calc>"),
        (
            "environment={kind: latency, slow_share: 0, slow_mean: 3}",
            "environment.slow_mean: found 3.0, but no call is slow",
            "environment.slow_mean=480.0",
        ),
        (
            "environment={kind: latency, slow_share: 1, std: 3}",
            "environment.std: found 3.0, but every call is slow",
            "environment.std=20.0",
        ),
        ("environment={kind: latency, floor: 300}", "environment.floor: found 300.0", "environment.floor=1.0"),
        ("environment={kind: latency, floor: 1000}", "slow_mean and slow_std do nothing", "environment.floor=1.0"),
        ("environment={kind: latency, mean: 0, std: 0}", "environment.floor: found 1.0", "environment.floor=0.0"),
        ("environment={kind: latency, stop: '', reply: x}", "environment.reply: found x", 'environment.reply=" "'),
        ("environment={kind: latency, stop: '', turns: 3}", "environment.turns: found 3", "environment.turns=16"),
        ("environment={kind: latency, scale: 2}", "environment.scale", "environment.scale="),
        ("environment={kind: python, timeout: 0}", "environment.timeout", "environment.timeout="),
        ("environment={kind: python, workers: 0}", "environment.workers", "environment.workers="),
        ("environment={kind: abacus}", "environment.kind: found abacus", "environment.kind="),
    ],
)
def test_what_cannot_act_is_refused_with_a_fix(changes, where, fix):
    with pytest.raises(RecipeError) as caught:
        changed(*re.split(r" (?=[a-z_.]+=)", changes))
    assert where in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        ("environment.kind=python",),
        ("environment.kind=python", "rollout.max_new_tokens=4"),  # the usual number of turns is only never reached
        ("environment.kind=python", "rollout.stop_strings=['Question:', '<co de>']"),
        ("environment.kind=calculator",),
        ("environment={kind: calculator, open: '', close: '=', reply: ' {}'}",),
        ("environment={kind: calculator, open: '[', close: ']', reply: '({})'}",),
        ("environment.kind=latency",),
        ("environment={kind: latency, stop: ''}", "rollout.stop_strings=['=']"),
        ("environment={kind: latency, slow_share: 0, mean: 1, std: 0}",),
        ("environment={kind: latency, slow_share: 0, mean: 0, std: 0, floor: 0}",),
        ("environment={kind: latency, slow_share: 1, slow_mean: 3, std: 20}",),
    ],
)
def test_what_can_act_is_accepted(changes):
    assert changed(*changes).environment is not None


def test_without_an_environment_nothing_is_asked():
    assert BASE.environment is None
    assert changed("environment.kind=latency", "environment=null") == BASE


@pytest.mark.parametrize("part", [PythonTool(), Calculator(), Latency()])
def test_a_recipe_with_an_environment_is_the_same_after_a_round_trip(part):
    recipe = BASE.but(environment=part)
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_environments_need_no_torch_and_no_transformers():
    code = (
        "import sys\nimport anabranch.environments.catalog, anabranch.environments.runner\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
