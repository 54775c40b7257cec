"""The plain loops are the published samplers: what is measured against them decodes the same text."""

import json

import pytest
import torch
from golden import FIXTURES, load_golden
from transformers.modeling_outputs import MaskedLMOutput

from benchmarks.reference_block_loop import reference_block_generate
from benchmarks.reference_loop import reference_generate
from llada import LLaDA2MoeModelLM, LLaDAModelLM
from llada.generation import preset


CASES = json.loads((FIXTURES / "llada2_moe" / "cases.json").read_text(encoding="utf-8"))
TOKENS = {"eos_token_id": 299, "mask_token_id": 300}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_plain_loop_is_the_published_sampler(temperature):
    model = LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()
    prompt = torch.randint(0, 290, (2, 5))
    settings = {"max_new_tokens": 12, "block_length": 4, "steps": 9 if not temperature else 6}
    torch.manual_seed(3)
    expected = model.generate(prompt, preset("llada", **settings, temperature=temperature))
    torch.manual_seed(3)
    assert torch.equal(reference_generate(model, prompt, 300, **settings, temperature=temperature), expected)


@pytest.fixture(scope="module")
def golden():
    return load_golden("llada2_moe")


@pytest.fixture(scope="module")
def block_causal(golden):
    return LLaDA2MoeModelLM.from_pretrained(golden.folder).eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_plain_block_loop_gives_the_stored_answers(block_causal, golden, case):
    prompt = golden.expected[f"generate.{case['name']}.prompt"]
    expected = golden.expected[f"generate.{case['name']}.new_tokens"]
    rule = {"steps": case["steps_per_block"]} if case["reference"] == "llada2.0" else {}
    rule |= {name: case[name] for name in ("editing_threshold", "max_post_steps") if not rule}
    sequence = reference_block_generate(
        block_causal,
        prompt,
        max_new_tokens=case["gen_length"],
        block_length=case["block_length"],
        threshold=case["threshold"],
        **rule,
        **TOKENS,
    )
    answer = sequence[:, prompt.shape[1] :]
    assert answer.shape[1] == case["gen_length"]
    assert torch.equal(answer[:, : expected.shape[1]], expected)
    assert (answer[:, expected.shape[1] :] == TOKENS["eos_token_id"]).all()


def test_the_plain_block_loop_never_writes_the_mask_token():
    # each token but the mask token, which is likelier in every step, is as likely as any other
    def model(input_ids, block_length):
        return MaskedLMOutput(logits=torch.zeros(*input_ids.shape, 320).index_fill(2, torch.tensor(300), 9.0))

    shape = {"max_new_tokens": 11, "block_length": 8, "threshold": 0.5}
    for rule in ({"steps": 3}, {"editing_threshold": 0.0, "max_post_steps": 2}):
        sequence = reference_block_generate(model, torch.tensor([[5, 6, 7]]), **shape, **rule, **TOKENS)
        assert sequence.tolist() == [[5, 6, 7] + [0] * 11]


@pytest.mark.parametrize("length", [8, 11, 19])
@pytest.mark.parametrize("threshold", [0.2, 0.95])
@pytest.mark.parametrize("name", ["llada2", "llada2.1-quality", "llada2.1-speed"])
def test_a_preset_decodes_as_the_plain_block_loop(block_causal, name, threshold, length):
    prompt = torch.randint(0, 290, (1, length), generator=torch.Generator().manual_seed(length))
    shape = {"max_new_tokens": 21, "block_length": 8, "threshold": threshold}
    config = preset(name, **shape, **TOKENS)
    config.max_denoising_steps = 5 if name == "llada2" else None
    rule = {"steps": 5} if name == "llada2" else {"max_post_steps": 16, "editing_threshold": config.editing_threshold}
    expected = reference_block_generate(block_causal, prompt, **shape, **rule, **TOKENS)
    sequence = block_causal.generate(prompt, config)
    # the loop fills the canvas up behind an end of text, `generate` ends there
    assert torch.equal(sequence, expected[:, : sequence.shape[1]])
    assert (expected[:, sequence.shape[1] :] == TOKENS["eos_token_id"]).all()
