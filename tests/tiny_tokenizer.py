"""A byte-level tokenizer with the 320 ids of the small checkpoints in `tests/fixtures`."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


__all__ = ["build_tiny_tokenizer"]

VOCAB_SIZE = 320
# the names are those of the LLaDA-8B tokenizer
NAMED_TOKENS = {
    295: "<|startoftext|>",
    296: "<|start_header_id|>",
    297: "<|end_header_id|>",
    298: "<|eot_id|>",
    299: "<|endoftext|>",
    300: "<|mdm_mask|>",
}
CHAT_TEMPLATE = """\
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


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """
    Build the tokenizer: ids 0 to 255 are the bytes, so that any text goes in and comes back, the rest are special.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: the tokenizer, with mask token 300, end-of-text and padding 299,
        end-of-turn 298 and a chat template that marks the assistant's words.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [NAMED_TOKENS.get(index, f"<|reserved_{index}|>") for index in range(len(alphabet), VOCAB_SIZE)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        model_max_length=512,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
