"""What becomes of a causal model: the same logits under a causal mask, and a mask token."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llada import ILLaDAForCausalLM, from_causal


SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 295,
    "eos_token_id": 299,
    "pad_token_id": 299,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama, wide heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 12}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 12, "tie_word_embeddings": True}),
    **{
        f"llama, {name}": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": {"rope_theta": 1e4, **rope}})
        for name, rope in SCALED.items()
    },
}


@torch.no_grad()
def draw(kind, **overrides):
    """A small causal model in which every weight shows in the logits."""
    config_class, model_class, settings = KINDS[kind]
    model = model_class(config_class(**{**SIZES, **settings, **overrides})).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("right_shift_logits", [False, True], ids=["in place", "shifted"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_the_causal_model(kind, right_shift_logits, tmp_path):
    causal, ids = draw(kind), torch.randint(0, 256, (2, 40))
    expected = causal(ids).logits
    model = from_causal(causal, mask_token=300, right_shift_logits=right_shift_logits)
    # of the model that is saved, too: nothing is missing in its file
    model.save_pretrained(tmp_path)
    loaded, info = ILLaDAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    lower = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    for converted in (model, loaded):
        for seen in ({"attention_mask": lower}, {"block_length": 1}):
            logits = converted(ids, **seen).logits
            if right_shift_logits:
                assert torch.allclose(logits[:, 1:], expected[:, :-1], atol=1e-5)
            else:
                assert torch.allclose(logits, expected, atol=1e-5)
    # of a single token there is nothing to hide
    assert torch.allclose(model(ids[:, :1]).logits, expected[:, :1], atol=1e-5)
    # and without a mask it is another model
    assert not torch.allclose(model(ids).logits[:, :20], expected[:, :20], atol=1e-2)


@torch.no_grad()
def test_the_causal_model_stays_as_it_is():
    causal = draw("llama, tied").to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in causal.named_parameters()}
    causal.generation_config.eos_token_id = [298, 299]
    model = from_causal(causal)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # chat models end turns and texts
    assert model.generation_config.eos_token_id == [298, 299]
    for parameter in model.parameters():
        parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in causal.named_parameters())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_new_mask_token_gets_a_row_in_the_middle(kind):
    causal = draw(kind)
    model = from_causal(causal)
    assert model.config.mask_token_id == 320
    assert model.config.vocab_size == 321
    weights = causal.get_input_embeddings().weight
    assert torch.equal(model.model.embed_tokens.weight[:320], weights)
    assert torch.allclose(model.model.embed_tokens.weight[320], weights.mean(0), atol=1e-6)
    assert torch.allclose(model.lm_head.weight[320], causal.lm_head.weight.mean(0), atol=1e-6)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == causal.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("mask_token", "expected", "token_id"),
    [
        (None, "<|reserved_256|>", 256),
        ("<|reserved_301|>", "<|reserved_301|>", 301),
        (302, "<|reserved_302|>", 302),
        ("<hole>", "<hole>", 320),
    ],
    ids=["reserved", "named", "by id", "new"],
)
def test_the_tokenizer_gets_the_mask_token(tiny_tokenizer, tmp_path, mask_token, expected, token_id):
    tiny_tokenizer.mask_token = None
    tiny_tokenizer.padding_side = "right"
    template = tiny_tokenizer.chat_template
    model = from_causal(draw("llama"), tiny_tokenizer, mask_token)
    assert model.config.mask_token_id == token_id
    assert model.config.vocab_size == max(320, token_id + 1)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = type(tiny_tokenizer).from_pretrained(tmp_path)
    assert (loaded.mask_token, loaded.mask_token_id, loaded.padding_side) == (expected, token_id, "left")
    assert loaded.chat_template == template


def test_a_mask_token_that_is_there_is_kept(tiny_tokenizer):
    assert from_causal(draw("llama"), tiny_tokenizer).config.mask_token_id == 300


@pytest.mark.parametrize(
    ("mask_token", "message"),
    [("a", "ordinary text"), ("<|endoftext|>", "start, end, padding or unknown")],
    ids=["text", "end"],
)
def test_tokens_in_use_are_refused(tiny_tokenizer, mask_token, message):
    with pytest.raises(ValueError, match=message):
        from_causal(draw("llama"), tiny_tokenizer, mask_token)


def test_without_a_tokenizer_a_mask_token_is_an_id():
    with pytest.raises(ValueError, match="needs a `tokenizer`"):
        from_causal(draw("llama"), mask_token="<hole>")
    with pytest.raises(ValueError, match="`mask_token=400` is no id; write one from 0 to 320"):
        from_causal(draw("llama"), mask_token=400)


def test_models_of_other_kinds_are_refused_by_name():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel \(`gpt2`\); give .* llama, mistral, qwen2, qwen3"):
        from_causal(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16)))
    with pytest.raises(ValueError, match="LlamaModel"):
        from_causal(LlamaModel(LlamaConfig(**SIZES)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
    ids=["mistral", "qwen2"],
)
def test_sliding_windows_are_refused(kind, settings):
    with pytest.raises(ValueError, match="only the 16 positions before them"):
        from_causal(draw(kind, **settings))


def test_rope_types_that_look_at_the_batch_are_refused():
    dynamic = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match="longest text of the batch"):
        from_causal(draw("llama", rope_parameters=dynamic))


def test_quantised_and_changed_models_are_refused():
    model = draw("llama")
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(48, 32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"`model.layers.0.mlp.up_proj.weight` of the model is quantised"):
        from_causal(model)
    model = draw("llama")
    model.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="has not the tensors of its family"):
        from_causal(model)


def test_models_that_are_not_all_here_are_refused():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="spread over meta"):
        from_causal(model)
