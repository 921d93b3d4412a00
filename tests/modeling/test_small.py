"""Small models: trained once, from what a family says and nothing else, complete or not there at all."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import islice

import pytest
import torch

from anabranch.errors import ModelError
from anabranch.modeling import small
from anabranch.modeling.cache import Silent
from anabranch.modeling.load import check_builtin, encode_chat, load_model, load_tokenizer, prepare, resolve
from anabranch.modeling.small import FAMILIES, NAMES, UNTRAINED, Family, Stage, batches, new_model, prompt_text
from anabranch.modeling.tiny import EOS, character_tokenizer
from anabranch.records import Message
from anabranch.tasks.exercises import Kind, Manner, exercises

KINDS = (Kind(2, 3, 1),)
MINI = Family(
    hidden=16,
    ffn=32,
    layers=1,
    heads=2,
    stages=(Stage("base", 3, KINDS, Manner(slip=0.3, loop=0.2)), Stage("aligned", 2, KINDS, Manner())),
    batch=8,
)


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def asked_little(monkeypatch):
    """A finished model is asked little: how good it is does not matter here. One thread, as forked processes need."""
    for name, value in {"HELD_OUT": 4, "NEW_TOKENS": 8, "THREADS": 1}.items():
        monkeypatch.setattr(small, name, value)


@pytest.fixture
def mini(monkeypatch, tmp_path):
    """A miniature family instead of the real ones, and a cache of its own."""
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(small, "FAMILIES", {"mini": MINI})
    monkeypatch.setattr(small, "NAMES", {"mini-base": ("mini", "base"), "mini-aligned": ("mini", "aligned")})
    return tmp_path


def test_a_family_is_trained_once_and_is_ordinary_model_folders(mini):
    notes = Notes()
    prepare("mini-base", notes)
    assert [line.split(":")[0] for line in notes.said] == ["building mini-* once", "mini-base", "mini-aligned"]
    folder = resolve("mini-aligned")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    model = load_model("mini-aligned", torch.float32, torch.device("cpu"))
    assert sum(parameter.numel() for parameter in model.parameters()) == MINI.parameters
    assert load_tokenizer(str(folder.parent / "base")).decode(load_tokenizer("mini-base")("1+2").input_ids) == "1+2"
    again = Notes()
    prepare("mini-aligned", again)
    assert again.said == []
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [line.split(":")[0] for line in small.training_lines("mini-base")] == ["mini-base", "mini-aligned"]
    record = json.loads((folder.parent / small.RECORD).read_text())
    assert [stage["steps"] for stage in record["stages"]] == [3, 5]


def test_the_same_family_gives_the_same_bits_and_another_seed_others(monkeypatch, tmp_path):
    def weights(cache, family):
        monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / cache))
        folder = small.family("mini", family, Silent())
        return [(folder / stage / "model.safetensors").read_bytes() for stage in ("base", "aligned")]

    first = weights("a", MINI)
    torch.rand(3)  # the global state plays no part
    assert weights("b", MINI) == first
    assert weights("c", replace(MINI, seed=1)) != first
    assert first[0] != first[1]


def test_training_leaves_random_state_and_threads_as_they_were(mini, torch_as_it_was):
    torch.set_num_threads(small.THREADS + 1)
    before = torch.get_rng_state()
    prepare("mini-base", Silent())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == small.THREADS + 1


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 32},
        {"ffn": 48},
        {"layers": 2},
        {"heads": 4},
        {"stages": MINI.stages[:1]},
        {"stages": (replace(MINI.stages[0], kinds=(Kind(2, 3, 2),)), MINI.stages[1])},
        {"batch": 9},
        {"lr": 1e-3},
        {"seed": 1},
    ],
)
def test_whatever_decides_the_weights_decides_the_key(change):
    assert replace(MINI, **change).key != MINI.key


def test_another_version_of_the_code_has_another_key(monkeypatch):
    before = MINI.key
    monkeypatch.setattr(small, "VERSION", small.VERSION + 1)
    assert MINI.key != before


class Fatal(Silent):
    """Kills the process when the first stage is done, before anything is complete."""

    def note(self, text):
        if text.startswith("mini-base"):
            os.kill(os.getpid(), signal.SIGKILL)


def build_and_die():
    torch.set_num_threads(1)
    small.family("mini", MINI, Fatal())


def test_a_killed_training_leaves_no_model_and_the_next_one_starts_again(mini):
    worker = multiprocessing.get_context("fork").Process(target=build_and_die)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    models = mini / "models"
    left = list(models.glob(".mini-*.part-*"))
    assert len(left) == 1
    assert not small.is_built("mini-base")
    assert (resolve("mini-base") / "model.safetensors").is_file()
    assert not left[0].exists()
    assert [path.name for path in models.iterdir() if path.is_dir()] == [f"mini-{MINI.key}"]


def test_a_full_disk_is_one_short_error_and_leaves_nothing(mini, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(small, "_save", full)
    with pytest.raises(ModelError, match="No space left on device"):
        resolve("mini-base")
    assert [path.name for path in (mini / "models").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["small-bas", "smal-aligned", "smollm2-135m-instruc"])
def test_a_name_with_a_slip_is_corrected(name):
    with pytest.raises(ModelError, match=r"nearly a built-in one\n  fix: model\.source=sm"):
        resolve(name)


def test_a_name_that_is_no_built_in_model_is_refused_where_one_is_needed():
    with pytest.raises(ModelError, match="they are smollm2-135m-instruct, small-base, small-aligned"):
        check_builtin("gpt2")


def test_every_stage_of_every_family_has_a_name():
    assert {"small-base", "small-aligned"} <= set(NAMES)
    assert all(0.4e6 < family.parameters < 5e6 for family in FAMILIES.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_number_of_parameters_is_that_of_the_model(name):
    model = new_model(FAMILIES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == FAMILIES[name].parameters


def test_text_is_encoded_as_the_chat_template_would():
    tokenizer = character_tokenizer(small.ALPHABET)
    for exercise in islice(exercises(KINDS, Manner(slip=0.5, check=0.3), 0), 30):
        ids = tokenizer(prompt_text(exercise))["input_ids"]
        assert ids == encode_chat(tokenizer, [Message("user", exercise.prompt)])
        assert tokenizer.unk_token_id not in ids
        chat = [{"role": "user", "content": exercise.prompt}, {"role": "assistant", "content": exercise.answer}]
        whole = tokenizer.apply_chat_template(chat, return_dict=False)
        assert ids + tokenizer(exercise.answer + EOS)["input_ids"] == whole
        assert tokenizer.decode(whole, skip_special_tokens=True) == f"{exercise.prompt}\n{exercise.answer}"


def test_a_batch_learns_the_tokens_of_answers_and_no_others():
    tokenizer = character_tokenizer(small.ALPHABET)

    def source():
        return exercises(KINDS, Manner(loop=0.5), 0)

    seen = []
    for tokens_BT, labels_BT in islice(batches(source(), tokenizer, 8), small.SORTED_BATCHES):
        assert tokens_BT.shape == labels_BT.shape
        learned_BT = labels_BT != UNTRAINED
        assert torch.equal(tokens_BT[learned_BT], labels_BT[learned_BT])
        for tokens_T, learned_T in zip(tokens_BT, learned_BT, strict=True):
            seen.append(
                (tokenizer.decode(tokens_T[~learned_T]).replace("<pad>", ""), tokenizer.decode(tokens_T[learned_T]))
            )
    expected = [
        (prompt_text(exercise), exercise.answer + (EOS if exercise.ends else ""))
        for exercise in islice(source(), 8 * small.SORTED_BATCHES)
    ]
    assert sorted(seen) == sorted(expected)  # each exactly once


def test_batches_of_similar_length_waste_little():
    tokenizer = character_tokenizer(small.ALPHABET)
    source = exercises(FAMILIES["small"].stages[-1].kinds, Manner(check=0.2, loop=0.1), 0)
    shares = [(tokens_BT != 0).float().mean() for tokens_BT, _ in islice(batches(source, tokenizer, 32), 64)]
    assert sum(shares) / len(shares) > 0.9
