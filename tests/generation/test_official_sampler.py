"""The preset `llada` against the authors' sampler: stored answers, and a plain loop on other models and settings."""

import json

import pytest
import torch
from golden import FIXTURES, load_golden
from reference_sampler import reference_sample

from llada import ILLaDAConfig, ILLaDAForCausalLM, LLaDAConfig, LLaDAModelLM
from llada.generation import preset


CASES = [
    case
    for case in json.loads((FIXTURES / "llada" / "cases.json").read_text(encoding="utf-8"))
    if case["reference"] == "official"
]
MASK = torch.tensor([300])


def small_model(seed: int, scale: float = 0.2, proposes_masks: bool = False) -> LLaDAModelLM:
    torch.manual_seed(seed)
    config = LLaDAConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=320,
        max_position_embeddings=128,
        mask_token_id=300,
        eos_token_id=299,
        pad_token_id=299,
        initializer_range=scale,
    )
    model = LLaDAModelLM(config).eval()
    if not proposes_masks:
        # as a trained model, for which it is never the answer
        model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, MASK, -50.0))
    return model


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_stored_answers(model, golden_llada, case):
    def stored(name):
        return golden_llada.expected.get(f"generate.{case['name']}.{name}")

    logit_rows = []
    # without the empty rows that a few are filled up with
    hook = model.lm_head.register_forward_pre_hook(
        lambda module, inputs: logit_rows.append(int(inputs[0].any(1).sum()))
    )
    suppress_eos = "logits" if case["logits_eos_inf"] else "confidence" if case["confidence_eos_eot_inf"] else None
    torch.manual_seed(case["torch_seed"])
    output = model.generate(
        stored("prompt"),
        attention_mask=stored("attention_mask"),
        generation_config=preset(
            "llada",
            max_new_tokens=case["gen_length"],
            steps=case["steps_total"],
            block_length=case["block_length"],
            temperature=case["temperature"],
            cfg_scale=case["cfg_scale"],
            remasking=case["remasking"],
            suppress_eos=suppress_eos,
            eos_token_id=[299, 298],
        ),
        return_dict_in_generate=True,
    )
    hook.remove()
    assert torch.equal(output.sequences, stored("sequences"))
    assert output.num_forwards == case["forwards"]
    # the head sees what is still masked in the block, and nothing else
    blocks = case["gen_length"] // case["block_length"]
    per_block = case["steps_total"] // blocks
    committed = case["block_length"] // per_block, case["block_length"] % per_block
    masked = [
        case["block_length"] - sum(committed[0] + (step < committed[1]) for step in range(done))
        for done in range(per_block)
    ]
    assert sum(logit_rows) == blocks * sum(masked) * case["batch"] * (2 if case["cfg_scale"] else 1)


def prompts(padded: bool):
    prompt = torch.randint(0, 290, (3, 7), generator=torch.Generator().manual_seed(3))
    attention_mask = torch.ones_like(prompt)
    if padded:
        prompt[1, :2], prompt[2, :5] = 299, 299
        attention_mask[1, :2], attention_mask[2, :5] = 0, 0
    return prompt, attention_mask


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("lengths", [(16, 16, 16), (16, 8, 12), (16, 4, 8), (12, 4, 18)], ids=str)
def test_same_as_a_plain_loop(lengths, temperature, cfg_scale, remasking):
    model = small_model(seed=sum(lengths))
    gen_length, block_length, steps = lengths
    prompt, attention_mask = prompts(padded=True)
    torch.manual_seed(11)
    expected = reference_sample(
        model, prompt, attention_mask, gen_length, block_length, steps, temperature, cfg_scale, remasking
    )
    after_reference = torch.rand(1)
    torch.manual_seed(11)
    config = preset(
        "llada",
        max_new_tokens=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        cfg_scale=cfg_scale,
        remasking=remasking,
    )
    assert torch.equal(model.generate(prompt, config, attention_mask=attention_mask), expected)
    # as many draws, too
    assert torch.equal(torch.rand(1), after_reference)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("flag", ["logits_eos_inf", "confidence_eos_eot_inf"])
def test_end_of_text_controls_as_published(flag, temperature):
    model = small_model(seed=4)
    # make the two end tokens likely, and differently so by position
    with torch.no_grad():
        model.lm_head.weight[298] = 4.0 * model.lm_head.weight[7]
        model.lm_head.weight[299] = 4.0 * model.lm_head.weight[9]
    prompt, attention_mask = prompts(padded=False)
    arguments = {"gen_length": 12, "block_length": 12, "steps": 12, "temperature": temperature}
    torch.manual_seed(5)
    expected = reference_sample(
        model, prompt, attention_mask, **arguments, eos_token_id=299, eot_token_id=298, **{flag: True}
    )
    torch.manual_seed(5)
    config = preset(
        "llada",
        max_new_tokens=12,
        block_length=12,
        steps=12,
        temperature=temperature,
        suppress_eos="logits" if flag == "logits_eos_inf" else "confidence",
        eos_token_id=[299, 298],
    )
    assert torch.equal(model.generate(prompt, config, attention_mask=attention_mask), expected)
    assert torch.isin(expected[:, 7:], torch.tensor([298, 299])).any()


def test_a_mask_that_is_drawn_as_published_is_an_error():
    model = small_model(seed=6, proposes_masks=True)
    with torch.no_grad():
        model.lm_head.weight[300] = 3.0 * model.lm_head.weight[12]
    prompt, attention_mask = prompts(padded=False)
    expected = reference_sample(model, prompt, attention_mask, 12, 4, 12)
    config = preset("llada", max_new_tokens=12, block_length=4, steps=12)
    left = (expected == 300).sum()
    assert left
    with pytest.raises(ValueError, match=f"{left} masks are left in rows .* the mask token was drawn"):
        model.generate(prompt, config, attention_mask=attention_mask)
    # without the compatibility nothing stays masked
    assert not (model.generate(prompt, max_new_tokens=12, block_length=4) == 300).any()


def test_illada_runs_through_the_same_sampler():
    torch.manual_seed(0)
    config = ILLaDAConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        initializer_range=0.2,
    )
    model = ILLaDAForCausalLM(config).eval()
    prompt = torch.randint(10, 290, (2, 6))
    expected = reference_sample(model, prompt, None, 12, 6, 6, mask_token_id=5)
    config = preset("llada", max_new_tokens=12, block_length=6, steps=6)
    assert torch.equal(model.generate(prompt, config), expected)


def test_default_settings_decide_as_the_authors_do_where_nothing_is_special(model, golden_llada):
    case = next(case for case in CASES if case["name"] == "official_05")
    prompt = golden_llada.expected["generate.official_05.prompt"]
    expected = golden_llada.expected["generate.official_05.sequences"]
    settings = {"max_new_tokens": case["gen_length"], "block_length": case["block_length"]}
    per_block = case["steps_total"] * case["block_length"] // case["gen_length"]
    tokens = model.generate(prompt, **settings, max_denoising_steps=per_block, eos_early_stop=False)
    assert torch.equal(tokens, expected)
    assert torch.equal(model.generate(prompt, **settings, steps=case["steps_total"], eos_early_stop=False), expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_stored_answers_do_not_hang_on_the_attention_backend(golden_llada, implementation):
    model = LLaDAModelLM.from_pretrained(golden_llada.folder, attn_implementation=implementation).double().eval()
    prompt = golden_llada.expected["generate.official_06.prompt"]
    attention_mask = golden_llada.expected["generate.official_06.attention_mask"]
    config = preset("llada", max_new_tokens=32, steps=16, block_length=8)
    sequences = model.generate(prompt, config, attention_mask=attention_mask)
    assert torch.equal(sequences, golden_llada.expected["generate.official_06.sequences"])
