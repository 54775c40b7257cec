"""Rules, listeners, processors and generators of the caller's own are as good as those of the package."""

import re

import pytest
import torch
from installed_wheel import ROOT
from markdown_code import run_blocks
from tiny_models import peaked_llada, tiny_llada, tiny_llada2_moe
from transformers import LogitsProcessorList

import llada.generation
from llada.generation import (
    AdaptiveSelector,
    CanvasLogitsProcessor,
    Listener,
    Revision,
    Selector,
    preset,
)
from llada.generation.rules import RULES
from llada.generation.rules.threshold import ThresholdSelector


MASK, EOS = 40, 42
PROMPT = torch.tensor([[1, 2, 3]])


class Own(AdaptiveSelector):
    """The threshold, written by somebody else."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def sure(self, scores, proposal, canvas, block):
        return scores >= self.threshold


class Nothing(Selector):
    def select(self, proposal, canvas, block):
        return torch.zeros_like(proposal.eligible)


class Keeping(Revision):
    pass


def test_the_page_runs_as_it_stands(monkeypatch):
    page = (ROOT / "docs" / "your-own-rule.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    _, printed = run_blocks(page, "your-own-rule.md")
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown
    # the figures of the page, up to what rounding decides on another processor
    there, here = (re.split(r"[\d.]+", text) for text in (shown.group(1), printed))
    assert there == here
    numbers = [[float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)] for text in (shown.group(1), printed)]
    for written, measured in zip(*numbers, strict=True):
        assert abs(written - measured) <= max(0.02 * written, 0.05) + (written > 40)


def test_the_names_are_public():
    names = {"Canvas", "CanvasLogitsProcessor", "Delta", "Listener", "Proposal", "Revision", "Selector"}
    assert names <= set(llada.generation.__all__)
    assert len(RULES) == len(set(RULES)) > 30


@pytest.mark.parametrize(
    "settings", [{}, {"kv_cache": "dual"}, {"credit_weight": 0.5}, {"stable_steps": 1}, {"cfg_scale": 1.0}], ids=str
)
def test_a_selector_of_ones_own_decides_like_ours(settings):
    model = peaked_llada(1)
    arguments = {"max_new_tokens": 12, "block_length": 6, "output_trace": True, **settings}
    ours = model.generate(PROMPT, threshold=0.6, **arguments)
    own = model.generate(PROMPT, selector=Own(0.6), **arguments)
    assert torch.equal(ours.sequences, own.sequences)
    assert ours.num_forwards == own.num_forwards
    assert [event.positions for event in ours.trace[0].events] == [event.positions for event in own.trace[0].events]


def test_it_fills_gaps_and_rows_of_a_batch():
    model = peaked_llada(2)
    canvas = torch.tensor([[1, 2, MASK, MASK, 5, MASK, 7], [9, MASK, 8, 8, MASK, MASK, 7]])
    assert torch.equal(model.infill(canvas, selector=Own(0.5)), model.infill(canvas, threshold=0.5))


def test_it_replaces_the_rule_of_the_model():
    # LLaDA2 has a threshold by itself, which others refine
    model = tiny_llada2_moe()
    model.generation_config.threshold = 0.95
    model.generation_config.editing_threshold = 0.9
    prompt, arguments = torch.tensor([[1, 2, 3, 4]]), {"max_new_tokens": 8, "block_length": 4}
    own = model.generate(prompt, selector=ThresholdSelector(0.2, inclusive=False), **arguments)
    assert torch.equal(own, model.generate(prompt, threshold=0.2, **arguments))


def test_it_replaces_that_of_a_passed_config():
    model = peaked_llada(3)
    config = preset("klass", max_new_tokens=8, block_length=4)
    own = model.generate(PROMPT, config, selector=Own(0.6))
    assert torch.equal(
        own,
        model.generate(PROMPT, preset("klass", max_new_tokens=8, block_length=4, kl_threshold=None, kl_history=None)),
    )


class Undecided(Revision):
    """Takes back, once, the first token that a block commits."""

    revises = True

    def begin(self, canvas, block):
        self.is_first = True

    def revise(self, proposal, committed, canvas, block):
        tokens = proposal.spread(proposal.tokens, canvas.tokens)
        if self.is_first and committed.sum() > 1:
            self.is_first = False
            first = committed.int().argmax(1)
            tokens[torch.arange(len(tokens)), first] = canvas.mask_token_id
        return committed, tokens


def test_a_revision_of_ones_own():
    model = peaked_llada(4)
    arguments = {
        "max_new_tokens": 8,
        "block_length": 8,
        "threshold": 0.0,
        "output_trace": True,
        "eos_early_stop": False,
    }
    plain = model.generate(PROMPT, **arguments)
    own = model.generate(PROMPT, revision=Undecided(), **arguments)
    assert len(plain.trace[0].events) == 1
    first, second = own.trace[0].events
    assert first.positions == list(range(3, 11)) and first.tokens[0] == MASK and second.positions == [3]
    assert not (own.sequences == MASK).any()


class Watching(Listener):
    def __init__(self):
        self.seen, self.told = [], []

    def on_proposal(self, proposal, canvas, block):
        tokens, values = proposal.top(2)
        self.seen.append((proposal.entropy(), tokens, values, proposal.logits.clone()))

    def on_step(self, canvas, delta):
        self.told.append(("step", delta.step, delta.positions.sum().item()))
        assert (delta.confidence[~delta.positions] == 0).all()

    def on_block_end(self, canvas, block):
        self.told.append(("block", block.index, None))

    def on_change(self, canvas, delta):
        self.told.append(("change", delta.step, int(delta.ends.max())))


def test_a_listener_sees_what_the_model_said():
    model, listener = peaked_llada(5), Watching()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    model.generate(PROMPT, max_new_tokens=6, block_length=3, listeners=[listener], eos_early_stop=False)
    handle.remove()
    assert len(calls) == len(listener.seen) == 6
    for entropy, tokens, values, logits in listener.seen:
        probability = logits.double().softmax(1)
        assert torch.allclose(entropy.double(), -(probability * probability.log()).sum(1), atol=1e-5)
        assert torch.equal(tokens[:, 0], logits.argmax(1))
        assert torch.allclose(values.double(), probability.gather(1, tokens), atol=1e-6)
    steps = [event for event in listener.told if event[0] != "block"]
    assert steps == [("step", number, 1) for number in range(6)]
    assert [event for event in listener.told if event[0] == "block"] == [("block", 0, None), ("block", 1, None)]


class StopAfter(Listener):
    """Ends every row behind its first settled tokens."""

    def __init__(self, length):
        self.length = length

    def on_block_end(self, canvas, block):
        rows = ~canvas.finished
        return canvas.ending(rows, torch.full_like(canvas.ends, self.length), EOS)


def test_a_listener_ends_rows():
    model, watching = peaked_llada(6), Watching()
    arguments = {"max_new_tokens": 12, "block_length": 4, "output_trace": True}
    output = model.generate(PROMPT, listeners=[StopAfter(6), watching], eos_early_stop=False, **arguments)
    assert output.sequences.shape == (1, 6) and output.num_forwards == 4
    assert [end for event, _, end in watching.told if event == "change" and end >= 0] == [6]
    # the last frame of the trace is the output, and what fills it up
    (*_, last) = output.trace[0].frames()
    assert last == output.sequences[0].tolist() + [EOS] * 9


@pytest.mark.parametrize("block_length", [2, 8])
def test_the_last_frame_is_the_output(block_length):
    model = peaked_llada(7)
    model.get_output_embeddings().weight.data[EOS] *= 1.5
    for seed in range(8):
        prompt = torch.randint(0, 40, (2, 3), generator=torch.Generator().manual_seed(seed))
        output = model.generate(prompt, max_new_tokens=8, block_length=block_length, threshold=0.3, output_trace=True)
        for sequence, trace in zip(output.sequences.tolist(), output.trace, strict=True):
            (*_, last) = trace.frames()
            assert last[: len(sequence)] == sequence and set(last[len(sequence) :]) <= {EOS}


class Mirror(CanvasLogitsProcessor):
    """The canvas reads the same from both ends."""

    def process(self, logits, canvas, index):
        length = canvas.tokens.shape[1]
        mirrored = canvas.tokens[index // length, length - 1 - index % length]
        wanted = torch.nn.functional.one_hot(mirrored, logits.shape[1]).bool()
        return logits.masked_fill((mirrored != canvas.mask_token_id).unsqueeze(1) & ~wanted, -torch.inf)


@pytest.mark.parametrize("as_list", [list, LogitsProcessorList])
def test_a_processor_sees_both_sides(as_list):
    model = peaked_llada(8)
    canvas = torch.tensor([[5, MASK, MASK, MASK, MASK, 9, 5], [MASK, 3, MASK, MASK, 7, MASK, 2]])
    filled = model.infill(canvas, logits_processor=as_list([Mirror()]))
    assert torch.equal(filled, filled.flip(1))
    with pytest.raises(ValueError, match="Mirror looks at both sides of a position, and this caller knows one"):
        Mirror()(canvas, torch.zeros(2, 48))


def drawn(model, prompt, generator, **settings):
    mask = (prompt != EOS).long()
    arguments = {"max_new_tokens": 6, "block_length": 3, "do_sample": True, "eos_early_stop": False}
    return model.generate(prompt, attention_mask=mask, generator=generator, **arguments | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"remasking": "random"},
        {"remasking_temperature": 1.0},
        {"step_schedule": "bernoulli", "max_denoising_steps": 2},
        {"threshold": 0.5},
    ],
    ids=str,
)
def test_the_draws_of_a_row_do_not_depend_on_its_batch(settings):
    model = peaked_llada(9).double()
    rows = [torch.tensor([[4, 5, 6, 7]]), torch.tensor([[8, 9]])]
    batch = torch.tensor([[EOS, EOS, 8, 9], [4, 5, 6, 7], [4, 5, 6, 7]])
    together = drawn(model, batch, torch.Generator().manual_seed(3), **settings)
    assert torch.equal(together[1], drawn(model, rows[0], torch.Generator().manual_seed(3), **settings)[0])
    assert torch.equal(together[0, 2:], drawn(model, rows[1], torch.Generator().manual_seed(3), **settings)[0])
    # rows with the same text draw by themselves
    assert not torch.equal(together[1], together[2])
    # and another state draws something else, whatever the global generator says
    assert torch.equal(together, drawn(model, batch, torch.Generator().manual_seed(3), **settings))
    assert not torch.equal(together, drawn(model, batch, torch.Generator().manual_seed(4), **settings))


def test_a_generator_for_each_row():
    model = peaked_llada(9).double()
    batch = torch.tensor([[4, 5], [4, 5]])
    same = drawn(model, batch, [torch.Generator().manual_seed(1) for _ in range(2)])
    assert torch.equal(same[0], same[1])
    copies = drawn(model, batch[:1], torch.Generator().manual_seed(1), num_return_sequences=3)
    assert len({tuple(row) for row in copies.tolist()}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selector": "threshold"}, "`selector` must be a `llada.generation.Selector`, but is 'threshold'"),
        ({"revision": Own(0.5)}, "`revision` must be a `llada.generation.Revision`, but is"),
        ({"listeners": [print]}, "`listeners` must hold objects of classes derived from `llada.generation.Listener`"),
        ({"selector": Own(0.5), "threshold": 0.5}, "`selector` and `threshold` each say how many predictions"),
        ({"selector": Own(0.5), "steps": 4}, "`selector` and `steps` each say how many predictions"),
        ({"selector": Own(0.5), "kl_threshold": 0.1}, "`selector` and `kl_threshold` each say how many predictions"),
        (
            {"revision": Keeping(), "threshold": 0.5, "remask_threshold": 0.5},
            "`revision` and `remask_threshold` each say what becomes of kept predictions",
        ),
        (
            {"revision": Keeping(), "initial_length": 2, "expand_threshold": 0.5, "threshold": 0.5},
            "`revision=Keeping` and `expand_threshold=0.5` cannot work together: both change",
        ),
        (
            {"selector": Own(0.5), "rng_compat": "llada", "eos_early_stop": False},
            "leave out `selector` and `revision`",
        ),
        ({"selector": Nothing()}, "Step 0, in block 0, decided nothing in rows"),
        ({"generator": [torch.Generator()] * 2}, "There are 2 generators and 1 rows"),
        (
            {"generator": torch.Generator(), "rng_compat": "llada", "eos_early_stop": False},
            "`generator` .* draws of the authors' sampler",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_llada().generate(PROMPT, max_new_tokens=4, **arguments)


def test_traits_of_ones_own_are_heard():
    own = Own(0.5)
    own.traits = frozenset({"remembers_positions"})
    settings = {"initial_length": 2, "expand_threshold": 0.5, "max_new_tokens": 8}
    with pytest.raises(ValueError, match="`selector=Own` and `expand_threshold=0.5` cannot work together: a position"):
        tiny_llada().generate(PROMPT, selector=own, **settings)
    assert not (tiny_llada().generate(PROMPT, selector=Own(0.5), **settings) == MASK).any()
