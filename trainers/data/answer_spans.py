"""Where the answers of a conversation lie in its tokens."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl.chat_template_utils import has_generation_markers


logger = logging.get_logger(__name__)

_PROBE = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "second question"},
]

Messages = list[dict[str, Any]]


class ChatRenderer:
    """
    Renders conversations with the chat template of a tokenizer, and finds the answers in them.

    A template with `{% generation %}` marks says itself what an answer is. For any other one, a conversation is also
    rendered up to each answer, and up to its end: what is between the two is the answer and its end of turn.

    The template of LLaDA-8B ends with the header of an answer whatever it is asked for. That header is taken off
    unless the template is asked for one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Raises:
        ValueError: If the tokenizer has no chat template, or one that cannot be trained with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise ValueError(
                "The dataset holds conversations, but the tokenizer has no chat template. Set "
                "`tokenizer.chat_template`, or `args.chat_template_path`, to that of the model; or write `prompt` and "
                "`completion` as text."
            )
        self.tokenizer = tokenizer
        self.is_marked = has_generation_markers(tokenizer.chat_template)
        self._forced_header = ""
        self._forced_header = self._find_forced_header()

    def prompt(self, messages: Messages, **kwargs) -> str:
        """What the model is given to answer, as text."""
        return self._render(messages, add_generation_prompt=True, **kwargs)

    def conversation(self, messages: Messages, **kwargs) -> str:
        """
        A conversation as text.

        Raises:
            ValueError: If the template refuses the conversation, or leaves a part of it out.
        """
        text = self._body(messages, **kwargs)
        for number, message in enumerate(messages):
            for call in message.get("tool_calls") or ():
                name = str(call.get("function", call).get("name"))
                if name not in text:
                    raise ValueError(
                        f"`tool_calls` of message {number} are left out by the chat template. Write the call of "
                        f"{name!r} into `content`, or set a `tokenizer.chat_template` that renders it"
                    )
            # a marked template may leave out earlier turns on purpose, and any may cut the thoughts of an answer
            if not self.is_marked and message["role"] != "assistant" and message["content"].strip() not in text:
                raise ValueError(
                    f"message {number} of the role {message['role']!r} is left out by the chat template. Write a role "
                    "that it knows, or set another `tokenizer.chat_template`"
                )
        return text

    def encode(self, messages: Messages, **kwargs) -> tuple[list[int], list[bool]]:
        """
        The tokens of a conversation, and which of them are answers.

        Args:
            messages (`list[dict]`):
                The conversation, with `role` and `content`.
            kwargs (*optional*):
                Further variables of the template: `tools`, ...

        Returns:
            `tuple` of `list[int]` and `list[bool]`: The tokens, and whether each belongs to an answer. The end of a
            turn is a part of the answer.

        Raises:
            ValueError: If the conversation has no answer, the template refuses it, or renders a turn differently
                when the conversation goes on.
        """
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise ValueError(
                "the conversation has no answer to train on. Write a message with the role 'assistant', or drop the "
                "row"
            )
        text = self.conversation(messages, **kwargs)
        if self.is_marked:
            rendered = self.tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True, **kwargs
            )
            if not any(rendered["assistant_masks"]):
                raise ValueError(
                    "the chat template marks no answer in it. Put `{% generation %}` and `{% endgeneration %}` around "
                    "what `tokenizer.chat_template` renders of an answer"
                )
            return rendered["input_ids"], [bool(mask) for mask in rendered["assistant_masks"]]
        if not self.tokenizer.is_fast:
            raise ValueError(
                "a tokenizer without offsets cannot say which tokens are the answer. Write a fast tokenizer, or "
                "`prompt` and `completion`"
            )
        spans = [self._span(text, messages, number, **kwargs) for number in answers]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # a token that lies on the edge of an answer belongs to it
        is_answer = [
            any(first < end and start < last for start, end in spans) for first, last in encoded["offset_mapping"]
        ]
        return encoded["input_ids"], is_answer

    def _span(self, text: str, messages: Messages, number: int, **kwargs) -> tuple[int, int]:
        """Where an answer starts and ends in the text of the conversation."""
        before = self._body(messages[:number], **kwargs) if number else ""
        through = self._body(messages[: number + 1], **kwargs)
        prompt = self.prompt(messages[:number], **kwargs) if number else ""
        start = len(_common_prefix(prompt, through))
        if not text.startswith(before) or not text.startswith(through) or start < len(before):
            raise ValueError(
                f"the chat template renders message {number} in another way when the conversation goes on, so it "
                "cannot be told from its neighbours. Put `{% generation %}` and `{% endgeneration %}` around answers "
                "in `tokenizer.chat_template`, or make a row of `prompt` and `completion` of every answer"
            )
        if prompt == before:
            # the template adds no header here, so another answer shows where this one starts
            content = messages[number]["content"].strip()
            other = messages[number] | {"content": "b" if content.startswith("a") else "a"}
            start = len(_common_prefix(self._body([*messages[:number], other], **kwargs), through))
        elif start < len(prompt):
            logger.warning_once(
                f"The chat template ends a prompt with {prompt[start:]!r}, which the conversation does not have at "
                "that place. The model is trained without it, and is given it when it generates."
            )
        return start, len(through)

    def _body(self, messages: Messages, **kwargs) -> str:
        return self._render(messages, **kwargs).removesuffix(self._forced_header)

    def _render(self, messages: list[Any], **kwargs) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses it: {error}") from error

    def _find_forced_header(self) -> str:
        """The header of an answer, if the template ends with it even after an answer."""
        answered = self._render(_PROBE[:2])
        is_asked = answered != self._render(_PROBE[:2], add_generation_prompt=True)
        if is_asked or self._render(_PROBE).startswith(answered):
            return ""
        # of a conversation without messages it renders nothing else
        (header,) = self._render([[]])
        if header and answered.endswith(header):
            return header
        if self.is_marked:
            # answers are found by their marks, whatever becomes of earlier turns
            return ""
        raise ValueError(
            "The chat template of the tokenizer renders an answer in another way when the conversation goes on. Set "
            "`tokenizer.chat_template` to one that ends with the header of an answer only if `add_generation_prompt` "
            "is true, or that has `{% generation %}` around the answers."
        )


def _common_prefix(one: str, other: str) -> str:
    length = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return min(one, other, key=len) if length is None else one[:length]


__all__ = ["ChatRenderer"]
