"""What the small models and the character tokenizer promise."""

import pytest
import torch
from transformers import AutoTokenizer

from anabranch.modeling.tiny import character_tokenizer, tiny_gpt_neox, tiny_llama, tiny_qwen3

FAMILIES = [tiny_llama, tiny_qwen3, tiny_gpt_neox]


@pytest.mark.parametrize("make", FAMILIES)
def test_the_seed_alone_decides_the_weights(make):
    before = torch.get_rng_state()
    first = make(seed=3)
    torch.manual_seed(12345)
    again, other = make(seed=3), make(seed=4)
    torch.set_rng_state(before)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.get_output_embeddings().weight, other.get_output_embeddings().weight)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_global_random_state_is_left_alone(make):
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", FAMILIES)
def test_positions_and_masks_show_in_the_logits(make):
    model, tokens = make(), torch.tensor([[1, 9, 8, 7]])
    logits = model(tokens).logits
    assert 0.3 < logits.std() < 3
    moved = model(tokens, position_ids=torch.tensor([[0, 1, 2, 9]])).logits
    assert (moved - logits)[0, -1].abs().max() > 0.05
    other_past = model(torch.tensor([[1, 9, 3, 7]])).logits
    assert (other_past - logits)[0, -1].abs().max() > 0.05


def test_a_tied_model_has_one_matrix_for_both_ends():
    model = tiny_llama(tied=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_text_survives_the_way_there_and_back(tmp_path):
    tokenizer = character_tokenizer("0123456789+= ?")
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ["12  + 7 =?", "\n\n3", " ", ""]:
        assert loaded.decode(loaded(text).input_ids) == text
        assert len(loaded(text).input_ids) == len(text)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2, 3)
    assert loaded.chat_template == tokenizer.chat_template


def test_an_unknown_character_is_unk_and_special_tokens_are_parsed():
    tokenizer = character_tokenizer("ab")
    assert tokenizer("a?b<eos>").input_ids == [5, 3, 6, 2]  # pad bos eos unk newline a b
    assert tokenizer.decode([5, 6, 2], skip_special_tokens=True) == "ab"
