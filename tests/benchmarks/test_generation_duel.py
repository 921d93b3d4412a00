"""The sides of the generation and start-up duels do the forced work, on a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from anabranch.modeling.load import needs_conversion
from benchmarks import generation, launcher, ours_generate
from benchmarks.duel import ROOT, Side
from benchmarks.generation import Peer, options, ours, play, prompt_tokens
from benchmarks.peers import transformers_generate
from benchmarks.tune import Change

PROMPT = [1, 9, 20, 12, 30]


pytestmark = pytest.mark.usefixtures("torch_as_it_was")


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_a_side_samples_every_answer_to_its_full_length_and_other_ones_each_round(kind, tiny_model):
    if kind == "ours":
        run = ours_generate.prepare({"model": tiny_model, "dtype": "float32", "max_rows": 16})
    else:
        run = transformers_generate.prepare({"model": tiny_model, "dtype": "float32", "attention": "sdpa"})
    rounds = [run({"prompt": PROMPT, "answers": 40, "tokens": 12, "round": number}) for number in (-1, 0, 0)]
    # 480 draws from 100 tokens: an end token that stopped an answer would be seen
    assert [result["work"] for result in rounds] == [480, 480, 480]
    assert all(result["distinct"] > 30 for result in rounds)
    if kind == "ours":
        assert rounds[0]["mean_logprob"] != rounds[1]["mean_logprob"] == rounds[2]["mean_logprob"]


def test_a_launch_is_timed_to_the_first_line():
    slow = "import time; print('first', flush=True); time.sleep(0.3); print('last')"
    result = launcher.prepare({"command": [sys.executable, "-c", slow]})({})
    assert result["line"] == "first"
    assert result["until_end"] - result["seconds"] > 0.25
    with pytest.raises(RuntimeError, match="ended with 3"):
        launcher.prepare({"command": [sys.executable, "-c", "raise SystemExit(3)"]})({})


def test_a_fresh_process_of_ours_writes_the_first_token(tiny_model, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = [sys.executable, "-m", "benchmarks.ours_first_token", tiny_model, *map(str, PROMPT)]
    token, dtype = launcher.prepare({"command": command})({})["line"].split()
    assert 0 <= int(token) < 100
    assert dtype in ("float32", "bfloat16")


def test_candidates_never_exceed_the_answers():
    (_, rows) = ours("model", 100, 2).axes
    assert [change.settings["max_rows"] for change in rows] == [64]
    (_, rows) = ours("model", 512, 2).axes
    assert [change.settings["max_rows"] for change in rows] == [64, 128, 256]


def test_the_prompt_has_the_length_that_its_text_says():
    model = "smollm2-135m-instruct"
    if needs_conversion(model):
        pytest.skip("the built-in model is not in the cache")
    assert len(prompt_tokens(model)) == 80


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Two sides whose rate is the number of their rows; ours may have as many as there are answers."""
    file = tmp_path / "side.py"
    file.write_text(
        "from benchmarks.worker import serve\n"
        "def prepare(settings):\n"
        "    return lambda args: {'work': settings['rows'], 'seconds': 1.0}\n"
        "if __name__ == '__main__':\n"
        "    serve(prepare)\n"
    )

    def side(name: str, **settings: int) -> Side:
        here = str(Path(__file__).parents[2])
        return Side(name, [sys.executable, str(file)], settings, {"PYTHONPATH": here})

    def our(model: str, answers: int, threads: int) -> Peer:
        return Peer(side("anabranch", rows=1), [[Change({"rows": answers})]], {})

    monkeypatch.setattr(generation, "ours", our)
    monkeypatch.setattr(generation, "prompt_tokens", lambda model: PROMPT)
    axes = [[Change({"rows": 2}), Change({"rows": 3}, {"FAST": "1"})]]
    return lambda answers: Peer(side("theirs", rows=1, answers=answers), axes, {})


def test_the_peer_is_searched_once_and_plays_every_number_of_answers_with_what_was_found(stand_ins, tmp_path, capsys):
    asked = options("", [4, 6]).parse_args(["--tune", "--rounds", "1", "--out", str(tmp_path)])
    play("test", stand_ins, asked)
    first, second = (json.loads((tmp_path / f"test_{answers}.json").read_text()) for answers in (4, 6))
    assert [tried["rate"] for tried in first["search"]] == [1, 4, 1, 2, 3]
    for report, answers in ((first, 4), (second, 6)):
        assert report["sides"]["anabranch"]["settings"] == {"rows": answers}
        assert report["sides"]["theirs"]["settings"] == {"rows": 3, "answers": answers}
        assert report["sides"]["theirs"]["env"]["FAST"] == "1"
    assert [tried.get("rate") for tried in second["search"]] == [1, 6, None]
    assert second["search"][-1]["searched_with"] == 4
    assert "settings of theirs: those that the search with 4 answers found" in capsys.readouterr().out


def test_a_peer_whose_settings_are_given_is_not_searched(stand_ins, tmp_path):
    given = ["--peer-settings", '{"rows": 5, "env": {"FAST": "2"}}']
    asked = options("", [4]).parse_args(["--tune", "--rounds", "1", "--out", str(tmp_path), *given])
    play("test", stand_ins, asked)
    report = json.loads((tmp_path / "test_4.json").read_text())
    assert {tried["side"] for tried in report["search"]} == {"anabranch"}
    assert report["sides"]["theirs"]["settings"] == {"rows": 5, "answers": 4}
    assert report["sides"]["theirs"]["env"]["FAST"] == "2"
    assert report["summary"]["ratio"]["median"] == pytest.approx(4 / 5)
