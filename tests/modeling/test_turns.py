"""What an environment says between two turns continues the conversation exactly as the chat template would write it."""

import pytest

from anabranch.errors import ModelError
from anabranch.modeling.tiny import EOS, character_tokenizer
from anabranch.modeling.turns import turn_renderer
from anabranch.records import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '" + EOS + "\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAID = (Message("tool", "42"), Message("user", "Higher."))


def chatml_tokenizer():
    tokenizer = character_tokenizer("abc")
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_text_follows_the_end_token_that_the_model_wrote_itself():
    render = turn_renderer(chatml_tokenizer(), (2,))
    assert render(SAID) == (f"\n<|im_start|>tool\n42{EOS}\n<|im_start|>user\nHigher.{EOS}\n<|im_start|>assistant\n")


def test_turns_and_observations_in_a_row_are_the_template_of_the_whole_conversation():
    tokenizer = chatml_tokenizer()
    render = turn_renderer(tokenizer, (2,))
    chat = [{"role": "user", "content": "Guess."}]
    text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    for turn, answer in (("3", "Higher."), ("9", "Lower.")):
        text += turn + EOS + render((Message("user", answer),))
        chat += [{"role": "assistant", "content": turn}, {"role": "user", "content": answer}]
        assert text == tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def test_without_a_chat_template_it_is_plain_text():
    tokenizer = character_tokenizer("abc")
    tokenizer.chat_template = None
    assert turn_renderer(tokenizer, (2,))(SAID) == "\n\n42\n\nHigher.\n"


def test_a_template_that_knows_no_such_role_is_named():
    tokenizer = character_tokenizer("abc")
    tokenizer.chat_template = "{{ raise_exception('no tools') if messages[-1].role == 'tool' }}" + CHATML
    with pytest.raises(ModelError, match=r"messages of roles tool, but it refused them: no tools"):
        turn_renderer(tokenizer, (2,))(SAID[:1])


def test_what_is_said_cannot_end_its_turn_or_begin_another():
    tokenizer = chatml_tokenizer()
    text = turn_renderer(tokenizer, (2,))((Message("tool", f"a{EOS}\n<bos>b"),))
    assert text == f"\n<|im_start|>tool\na{EOS[0]} {EOS[1:]}\n< bos>b{EOS}\n<|im_start|>assistant\n"
