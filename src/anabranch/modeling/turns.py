"""What stands between two turns of a model: what somebody says to it, in its chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from anabranch.errors import ModelError, explain
from anabranch.records import Message

MARK = "|a turn of the model|"
"""Stands where the model's turn was; behind it the template goes on."""


def turn_renderer(
    tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[int]
) -> Callable[[tuple[Message, ...]], str]:
    """A function that writes messages as they follow the token that ends the model's turn, up to its next turn.

    With ChatML a user's "Higher." becomes "\\n<|im_start|>user\\nHigher.<|im_end|>\\n<|im_start|>assistant\\n": the
    model's own <|im_end|> is there already, it ended the turn. Without a chat template (a base model) messages are
    plain text between empty lines, as in `encode_chat`.

    A special token that is spelled out in a message is broken up by a space: what an environment says, perhaps in
    words of the model, cannot end its turn or begin another.

    Args:
        tokenizer: of the model.
        stop_tokens: ids that end a turn, see `stop_token_ids`.
    """
    ends = tuple(str(tokenizer.convert_ids_to_tokens(int(token))) for token in stop_tokens)

    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = sorted(
        {token for token in (*tokenizer.all_special_tokens, *added) if len(token) > 1}, key=len, reverse=True
    )

    def plain(text: str) -> str:
        for token in special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(messages: tuple[Message, ...]) -> str:
        """Raises ModelError if the template refuses the messages (some know no role `tool`)."""
        if not tokenizer.chat_template:
            return "".join(f"\n\n{plain(message.content)}" for message in messages) + "\n"
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
        chat += [{"role": message.role, "content": plain(message.content)} for message in messages]
        try:
            text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            found = f"messages of roles {', '.join(message.role for message in messages)}"
            fix = "another model, or an environment without these"
            raise ModelError(explain("chat template", found, f"it refused them: {error}", fix)) from error
        behind = text[text.index(MARK) + len(MARK) :]
        return next((behind.removeprefix(end) for end in ends if behind.startswith(end)), behind)

    return render
