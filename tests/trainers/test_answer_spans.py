"""Which tokens of a conversation are answers, for every chat template that our checkpoints have."""

import pytest
from chat_templates import DLLM_TEMPLATE, ILLADA_TEMPLATE, LING_TEMPLATE, PUBLISHED_CHAT_TEMPLATE
from datasets import Dataset
from demo_checkpoint import DEMO_FOLDER

from llada.trainers.data.answer_spans import ChatRenderer


def _turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


TEMPLATES = {
    # template, end of a turn
    "llada-8b": (PUBLISHED_CHAT_TEMPLATE, "<|eot_id|>"),
    "dllm": (DLLM_TEMPLATE, "<|eot_id|>"),
    "ling": (LING_TEMPLATE, "<|role_end|>"),
    "illada": (ILLADA_TEMPLATE, "<|endoftext|>"),
}
CONVERSATIONS = {
    "single": _turns("question", "the answer"),
    "multi": _turns("q", "first answer", "q", "a", "<|reserved_301|>", "same", "q", "same"),
    "system": _turns("hello", "hé — 你好", "bye", "ö\n", system="be brief"),
    "ends with a question": _turns("hello", "hi", "bye"),
    "starts with an answer": _turns("hello", "hi", "bye", "end")[1:],
    "two answers in a row": _turns("hello", "hi") + [{"role": "assistant", "content": "again"}],
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL_TURNS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "tool", "content": "two"},
    {"role": "assistant", "content": "It is 2."},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def _parts(tokenizer, ids, trained):
    """The trained stretches, as text."""
    parts, part = [], []
    for token, is_trained in [*zip(ids, trained, strict=True), (0, False)]:
        if is_trained:
            part.append(token)
        elif part:
            parts.append(tokenizer.decode(part))
            part = []
    return parts


@pytest.fixture(params=TEMPLATES)
def family(request, tiny_tokenizer):
    tiny_tokenizer.chat_template, end = TEMPLATES[request.param]
    return request.param, tiny_tokenizer, end


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_answers_and_their_ends_of_turn_are_found(family, kind):
    name, tokenizer, end = family
    messages = CONVERSATIONS[kind]
    if name == "illada" and kind == "system":
        with pytest.raises(ValueError, match="the chat template refuses it: no system turns"):
            ChatRenderer(tokenizer).encode(messages)
        return
    ids, trained = ChatRenderer(tokenizer).encode(messages)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    is_trimmed = name in ("llada-8b", "dllm")
    assert _parts(tokenizer, ids, trained) == [(text.strip() if is_trimmed else text) + end for text in answers]
    # what generation is given is what precedes an answer, and no header follows the last
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert tokenizer.decode(ids) == (rendered.removesuffix(header) if name == "llada-8b" else rendered)
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    if last and messages[last - 1]["role"] != "assistant":
        prompt = tokenizer.apply_chat_template(messages[:last], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt and trained[len(prompt)] and not trained[len(prompt) - 1]


def test_calls_of_tools_are_answers_and_their_results_are_not(tiny_tokenizer):
    tiny_tokenizer.chat_template = LING_TEMPLATE
    ids, trained = ChatRenderer(tiny_tokenizer).encode(TOOL_TURNS, tools=TOOLS)
    call, answer = _parts(tiny_tokenizer, ids, trained)
    assert call == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|role_end|>'
    assert answer == "It is 2.<|role_end|>"
    assert '"parameters": {}' in tiny_tokenizer.decode(ids)


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("unmarked", [PUBLISHED_CHAT_TEMPLATE, DLLM_TEMPLATE], ids=["llada-8b", "dllm"])
def test_marks_and_comparison_find_the_same(tiny_tokenizer, kind, unmarked):
    messages = CONVERSATIONS[kind]
    assert ChatRenderer(tiny_tokenizer).is_marked
    marked = ChatRenderer(tiny_tokenizer).encode(messages)
    tiny_tokenizer.chat_template = unmarked
    assert not ChatRenderer(tiny_tokenizer).is_marked
    assert ChatRenderer(tiny_tokenizer).encode(messages) == marked


def test_a_token_on_the_edge_is_a_part_of_the_answer_as_with_marks(tiny_tokenizer):
    tiny_tokenizer.add_tokens([">hi", "hi<|", "t_id|>["])
    plain = (
        "{% for m in messages %}[{{ m.role }}>{% if m.role == 'assistant' %}A{% endif %}{{ m.content }};{% endfor %}"
    )
    found = []
    for template in (
        plain.replace("A{% endif %}", "{% endif %}"),
        "{% for m in messages %}[{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
        "{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}",
    ):
        prompt = "{% if add_generation_prompt %}[assistant>{% endif %}"
        tiny_tokenizer.chat_template = template + prompt
        found.append(ChatRenderer(tiny_tokenizer).encode(_turns("hi", "hi", "hi", "hello")))
    assert found[0] == found[1]
    assert _parts(tiny_tokenizer, *found[0]) == [">hi;", "hello;"]


def test_other_templates_that_always_add_a_header_can_be_trained(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    ids, trained = ChatRenderer(tiny_tokenizer).encode(_turns("q", "one", "q", "two"))
    assert tiny_tokenizer.decode(ids) == "[user]q[assistant]one[user]q[assistant]two"
    assert _parts(tiny_tokenizer, ids, trained) == ["one", "two"]


def test_a_prompt_that_ends_differently_is_told(tiny_tokenizer, caplog):
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    ids, trained = ChatRenderer(tiny_tokenizer).encode(_turns("q", "one"))
    assert _parts(tiny_tokenizer, ids, trained) == ["one;"]
    assert "ends a prompt with '<think>'" in caplog.text


def test_a_marked_template_may_leave_out_earlier_turns(make_trainer, tiny_tokenizer):
    """That of the demo, whose model knows one question at a time."""
    template = (DEMO_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    tiny_tokenizer.chat_template = template
    renderer = ChatRenderer(tiny_tokenizer)
    for kind in ("single", "multi"):
        ids, trained = renderer.encode(CONVERSATIONS[kind])
        question, answer = (message["content"] for message in CONVERSATIONS[kind][-2:])
        assert tiny_tokenizer.decode(ids) == f"{tiny_tokenizer.bos_token}{question}\n{answer}<|endoftext|>"
        assert _parts(tiny_tokenizer, ids, trained) == [f"{answer}<|endoftext|>"]
    trainer = make_trainer(train_dataset=Dataset.from_dict({"messages": [CONVERSATIONS["single"]]}), max_steps=1)
    assert trainer.train().global_step == 1
    # without the marks nobody could tell
    tiny_tokenizer.chat_template = template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    with pytest.raises(ValueError, match="renders an answer in another way when the conversation goes on. Set"):
        ChatRenderer(tiny_tokenizer)


def test_turns_that_change_when_the_conversation_goes_on_are_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = LING_TEMPLATE
    renderer = ChatRenderer(tiny_tokenizer)
    thought = "<think>hm</think>yes"
    ids, trained = renderer.encode(_turns("q", thought))
    assert _parts(tiny_tokenizer, ids, trained) == ["\n<think>hm</think>\n\nyes<|role_end|>"]
    with pytest.raises(ValueError, match="message 1 in another way when the conversation goes on.*generation"):
        renderer.encode(_turns("q", thought, "q", "a"))
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="in another way when the conversation goes on.*add_generation_prompt"):
        ChatRenderer(tiny_tokenizer)


def test_what_the_template_leaves_out_is_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="`tool_calls` of message 1 are left out.*'add'"):
        ChatRenderer(tiny_tokenizer).encode(TOOL_TURNS)
    tiny_tokenizer.chat_template = LING_TEMPLATE
    messages = [*_turns("q"), {"role": "critic", "content": "well"}, *_turns("q", "a")[1:]]
    with pytest.raises(ValueError, match="message 1 of the role 'critic' is left out"):
        ChatRenderer(tiny_tokenizer).encode(messages)


def test_conversations_without_an_answer_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="no answer to train on.*'assistant'"):
        ChatRenderer(tiny_tokenizer).encode(_turns("q"))
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if 0 %}{% generation %}{% endgeneration %}{% endif %}"
    )
    with pytest.raises(ValueError, match="marks no answer.*generation"):
        ChatRenderer(tiny_tokenizer).encode(_turns("q", "a"))


def test_a_chat_template_is_required(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*`tokenizer.chat_template`"):
        ChatRenderer(tiny_tokenizer)


def test_tokenizers_without_offsets_are_refused(published_tokenizer, monkeypatch):
    monkeypatch.setattr(type(published_tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="Write a fast tokenizer"):
        ChatRenderer(published_tokenizer).encode(_turns("q", "a"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_messages_are_trained_with_every_template(make_trainer, tiny_tokenizer, caplog, name):
    tiny_tokenizer.chat_template, end = TEMPLATES[name]
    rows = Dataset.from_dict({"messages": [CONVERSATIONS["multi"]] * 4})
    trainer = make_trainer(train_dataset=rows, processing_class=tiny_tokenizer, multi_turn="all")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    parts = _parts(tiny_tokenizer, batch["input_ids"][0].tolist(), (batch["labels"][0] != -100).tolist())
    assert [part.removesuffix("<|endoftext|>") for part in parts] == [
        text + end.removesuffix("<|endoftext|>") for text in ("first answer", "a", "same", "same")
    ]
    trainer.train()
    assert trainer.state.log_history[0]["content_ce"] > 5
    assert "end-of-turn" not in caplog.text
    assert tiny_tokenizer.chat_template == TEMPLATES[name][0]
