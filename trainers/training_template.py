"""The chat template that fine-tuning needs where the published one is only good for generation."""

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers


# renders what the published template does, with the answers marked and the last header only on request
LLADA_TRAINING_TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.first -%}{{ bos_token }}{%- endif -%}
    {{ "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {%- if message["role"] == "assistant" -%}
        {%- generation -%}{{ message["content"] | trim + "<|eot_id|>" }}{%- endgeneration -%}
    {%- else -%}
        {{ message["content"] | trim + "<|eot_id|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif -%}
"""

_PROBE = [
    {"role": "user", "content": " first question "},
    {"role": "assistant", "content": " answer\n"},
    {"role": "user", "content": "second question"},
]


def find_training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """
    The chat template to train with, if the tokenizer's own will not do.

    The template of LLaDA-8B always ends with the header of an answer, also after an answer, and does not mark answers.
    Whether a template is that one is found out by rendering conversations with it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `str`: A template that renders the same tokens, or `None` if the tokenizer's own can be trained with.

    Raises:
        ValueError: If the template always ends with the header of an answer and is not that of LLaDA-8B.
    """
    template = tokenizer.chat_template
    if template is None or has_generation_markers(template):
        return None

    def render(messages: list[dict[str, str]], **kwargs) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

    answered = _PROBE[:2]
    honours_request = render(answered) != render(answered, add_generation_prompt=True)
    if honours_request or render(_PROBE).startswith(render(answered)):
        return None
    for messages in (_PROBE[:1], answered, _PROBE):
        if render(messages) != render(messages, chat_template=LLADA_TRAINING_TEMPLATE, add_generation_prompt=True):
            raise ValueError(
                "The chat template of the tokenizer ends with the header of an answer even after an answer, which "
                "would be trained as a part of it. Set `tokenizer.chat_template` to one that does so only if "
                "`add_generation_prompt` is true, and that has `{% generation %}` around the answers."
            )
    return LLADA_TRAINING_TEMPLATE


__all__ = ["LLADA_TRAINING_TEMPLATE", "find_training_template"]
