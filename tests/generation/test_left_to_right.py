"""The preset that decodes from left to right."""

import torch
from tiny_models import peaked_llada, tiny_llada

from llada.generation import preset


MASK, END = 40, 42


@torch.no_grad()
def next_distribution(model, texts: torch.Tensor, left: int) -> torch.Tensor:
    """Of the token after each text, with so many masks in its place and after it. Never the mask."""
    canvas = torch.nn.functional.pad(texts, (0, left), value=MASK)
    logits = model(canvas).logits[:, texts.shape[1]].double()
    logits[:, MASK] = -torch.inf
    return logits.softmax(-1)


def test_draw_for_draw():
    ended = 0
    for seed in range(6):
        model = peaked_llada(seed).double()
        with torch.no_grad():
            model.get_output_embeddings().weight[END] *= 1.5
        text = torch.tensor([[1, 2, 3]])
        torch.manual_seed(seed)
        answer = model.generate(text, generation_config=preset("left-to-right", max_new_tokens=8))
        torch.manual_seed(seed)
        for left in range(8, 0, -1):
            # the exponential race: the first of arrivals at these rates is a draw
            arrivals = -torch.rand(1, 48, dtype=torch.float64).log() / next_distribution(model, text, left)
            text = torch.cat([text, arrivals.argmin(1, keepdim=True)], dim=1)
            if text[0, -1] == END:
                ended += left > 1
                break
        assert torch.equal(answer, text)
    assert ended


def test_the_distribution_is_that_of_one_token_after_the_other():
    torch.manual_seed(0)
    model, rows = tiny_llada(), 4000
    text = torch.tensor([[1, 2]])
    first = next_distribution(model, text, 2)[0]
    # of the second, over all first ones
    texts = torch.cat([text.expand(48, 2), torch.arange(48).unsqueeze(1)], dim=1)
    second = first @ next_distribution(model, texts, 1)
    config = preset("left-to-right", max_new_tokens=2, eos_early_stop=False, num_return_sequences=rows)
    drawn = model.generate(text, generation_config=config)[:, 2:]
    for place, exact in enumerate((first, second)):
        found = drawn[:, place].bincount(minlength=48) / rows
        assert (found - exact).abs().sum() / 2 < 0.07
        assert (second - first).abs().sum() / 2 > 0.15


def test_it_is_what_rollouts_take():
    config = preset("left-to-right")
    assert (config.block_length, config.do_sample, config.temperature, config.max_new_tokens) == (1, True, 1.0, 256)
    # one after the other without a draw, too
    assert preset("left-to-right", temperature=0).do_sample is False
