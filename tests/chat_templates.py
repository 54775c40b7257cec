"""Chat templates as published checkpoints have them, none of which marks answers, written for the tiny tokenizer."""

__all__ = ["DLLM_TEMPLATE", "ILLADA_TEMPLATE", "LING_TEMPLATE", "PUBLISHED_CHAT_TEMPLATE"]

# how the tokenizer of LLaDA-8B renders conversations: the header of an answer follows always
PUBLISHED_CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

# the same words, with a header unless the last turn is an answer, whatever is asked for
DLLM_TEMPLATE = """\
{%- for message in messages -%}
    {{ bos_token if loop.first else "" }}{{ "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
    {{- message.content | trim + "<|eot_id|>" }}
{%- endfor -%}
{%- if add_generation_prompt and messages and messages[-1].role != "assistant" -%}
    {{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif -%}
"""

# of LLaDA-MoE and LLaDA2: a system turn always, tools in it, results of tools in one turn, thoughts of the last turn
LING_TEMPLATE = """\
{{- "<role>SYSTEM</role>" }}
{%- if messages[0].role == "system" -%}{{ messages[0].content + "\\n" }}{%- endif -%}
{%- for tool in tools or [] -%}{{ ("# Tools" if loop.first else "") + "\\n" + (tool | tojson) + "\\n" }}{%- endfor -%}
{{- "detailed thinking off<|role_end|>" }}
{%- set last = namespace(question=0) -%}
{%- for message in messages -%}
    {%- if message.role == "user" -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == "user" -%}
        {{ "<role>HUMAN</role>" + message.content + "<|role_end|>" }}
    {%- elif message.role == "system" and not loop.first -%}
        {{ "<role>SYSTEM</role>" + message.content + "<|role_end|>" }}
    {%- elif message.role == "assistant" -%}
        {%- set parts = message.content.split("</think>") -%}
        {{ "<role>ASSISTANT</role>" }}
        {%- if parts | length > 1 and loop.index0 > last.question -%}
            {{ "\\n" + parts[0] + "</think>\\n\\n" }}
        {%- endif -%}
        {{ parts[-1] }}
        {%- for call in message.tool_calls or [] -%}
            {{ "<tool_call>\\n" + (call.function | tojson) + "\\n</tool_call>" }}
        {%- endfor -%}
        {{ "<|role_end|>" }}
    {%- elif message.role == "tool" -%}
        {%- if messages[loop.index0 - 1].role != "tool" -%}{{ "<role>OBSERVATION</role>" }}{%- endif -%}
        {{ "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" -%}{{ "<|role_end|>" }}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<role>ASSISTANT</role>" }}{%- endif -%}
"""

# of iLLaDA: no system turn
ILLADA_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role == "system" -%}{{ raise_exception("no system turns") }}{%- endif -%}
    {{ bos_token + message.role + "\\n" + message.content + eos_token }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ bos_token + "assistant\\n" }}{%- endif -%}
"""
