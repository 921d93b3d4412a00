"""What loading promises: the right model in full, or one short error."""

import errno
import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from anabranch.errors import ModelError
from anabranch.modeling import load
from anabranch.modeling.load import (
    context_length,
    encode_chat,
    load_model,
    load_tokenizer,
    resolve,
    stop_token_ids,
)
from anabranch.modeling.tiny import character_tokenizer, tiny_gpt_neox, tiny_llama
from anabranch.records import Message

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """A complete small model folder with a character tokenizer."""
    tiny_llama(tied=True).save_pretrained(tmp_path)
    character_tokenizer("0123456789+= ").save_pretrained(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------- folders and names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_loaded_without_a_network(folder, dtype, no_network):
    model = load_model(str(folder), dtype, CPU)
    assert not model.training
    for ours, theirs in zip(model.parameters(), tiny_llama(tied=True).parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert load_tokenizer(str(folder)).decode(load_tokenizer(str(folder))("1+2").input_ids) == "1+2"
    assert context_length(model) == 512


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers(folder, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(folder), torch.float32, CPU)
    load_tokenizer(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "a/b/c", "~/no such place", "../x"])
def test_a_folder_that_is_missing_is_named(source):
    with pytest.raises(ModelError, match=r"no such folder, but .*\n  fix: model\.source="):
        resolve(source)


def test_a_folder_without_config_and_a_file_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="a file"):
        resolve(str(tmp_path / "file"))


def test_an_id_stays_an_id_unless_a_folder_bears_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == "org/name"
    tiny_llama().save_pretrained("org/name")
    assert resolve("org/name") == Path("org/name")


@pytest.mark.parametrize("what", [load_tokenizer, lambda source: load_model(source, torch.float32, CPU)])
def test_an_id_that_cannot_be_reached_is_one_short_error_at_once(what, monkeypatch, capfd):
    def unreachable(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, "no network")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(load, "getproxies", dict)
    with pytest.raises(ModelError) as caught:
        what("nobody-at-all/nothing-here")
    assert "nobody-at-all/nothing-here" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------- what is not a causal LM


def test_an_encoder_is_refused(tmp_path):
    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type bert, but a decoder-only causal language model"):
        load_model(str(tmp_path), torch.float32, CPU)


def test_an_encoder_decoder_is_refused(tmp_path):
    sizes = {"num_layers": 1, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 20}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="an encoder-decoder model"):
        load_model(str(tmp_path), torch.float32, CPU)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "no_such_type"}, "no_such_type"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "by zero"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ],
)
def test_a_config_of_something_else_is_refused_before_weights_are_read(folder, change, found):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=found):
        load_model(str(folder), torch.float32, CPU)


def test_a_config_that_is_no_json_is_one_short_error(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config of model"):
        load_model(str(folder), torch.float32, CPU)


def test_tokenizer_settings_of_another_type_are_one_short_error(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="tokenizer of model"):
        load_tokenizer(str(folder))


def test_an_unknown_attention_is_refused(folder):
    with pytest.raises(ModelError, match="no_such_attention"):
        load_model(str(folder), torch.float32, CPU, attention="no_such_attention")


# ---------------------------------------------------------------------------------------------------- bad weights


@pytest.mark.parametrize("case", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_an_error_not_a_warning(folder, case):
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    if case == "missing":
        del state[name]
    elif case == "unexpected":
        state["model.layers.0.mlp.other.weight"] = torch.zeros(2, 2)
        name = "model.layers.0.mlp.other.weight"
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{case}|size|shape"):
        load_model(str(folder), torch.float32, CPU)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_weight_files_that_are_gone_or_cut_are_one_short_error(folder, damage):
    file = folder / "model.safetensors"
    file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="weights of model"):
        load_model(str(folder), torch.float32, CPU)


def test_a_folder_without_tokenizer_is_one_short_error(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer of model"):
        load_tokenizer(str(tmp_path))


# ----------------------------------------------------------------------------------------------------- chat and stops


def test_messages_are_encoded_by_the_chat_template():
    tokenizer = character_tokenizer("12+=")
    # pad bos eos unk newline + 1 2 =
    assert encode_chat(tokenizer, [Message("user", "1+2=")]) == [1, 6, 5, 7, 8, 4]
    thread = [Message("user", "1"), Message("assistant", "2"), Message("user", "+")]
    assert encode_chat(tokenizer, thread) == [1, 6, 4, 7, 2, 5, 4]


def test_without_a_chat_template_messages_are_joined_as_plain_text():
    tokenizer = character_tokenizer("12+=")
    tokenizer.chat_template = None
    assert encode_chat(tokenizer, [Message("system", "1"), Message("user", "+2")]) == [6, 4, 4, 5, 7, 4]


def test_a_template_that_refuses_the_messages_is_one_short_error():
    tokenizer = character_tokenizer("12")
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ModelError, match="System role not supported"):
        encode_chat(tokenizer, [Message("system", "1")])


def test_stop_tokens_are_those_of_tokenizer_and_generation_config():
    tokenizer, model = character_tokenizer("12"), tiny_llama()
    assert stop_token_ids(tokenizer, model) == (2,)
    model.generation_config.eos_token_id = [7, 2, 5]
    assert stop_token_ids(tokenizer, model) == (2, 5, 7)
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    assert stop_token_ids(tokenizer, model) == ()


def test_the_context_length_is_known_or_refused():
    model = tiny_gpt_neox(positions=77)
    assert context_length(model) == 77
    sizes = {"vocab_size": 20, "hidden_size": 8, "n_layer": 1, "n_head": 2}
    with pytest.raises(ModelError, match="max_position_embeddings"):
        context_length(BloomForCausalLM(BloomConfig(**sizes)))  # ALiBi: any length
