"""
What holds for combinations of region, forward plan, selection and revision that are not refused: for all without a
revision, and for a third of the others. `HYPOTHESIS_PROFILE=thorough` runs all of them.
"""

import os
from itertools import combinations, product

import pytest
import torch
from tiny_models import as_block_causal, peaked_llada

from llada import DiffusionGenerationConfig
from llada.generation.validity import check_complete


REGIONS = {
    "whole": {"block_length": 9},
    "blocks": {"block_length": 4},
    "gaps": {"block_length": 4},
    "block-causal": {"block_length": 4},
}

FORWARDS = {
    "full": {},
    "prefix": {"kv_cache": "prefix"},
    "dual": {"kv_cache": "dual"},
    "vicinity": {"kv_cache": "vicinity", "vicinity": 2, "refresh_interval": 3},
    "delayed": {"kv_cache": "delayed", "refresh_interval": 4},
    "window": {"suffix_window": 2},
    "window-prefix": {"kv_cache": "prefix", "suffix_window": 2},
    "window-dual": {"kv_cache": "dual", "suffix_window": 2},
    "window-vicinity": {"kv_cache": "vicinity", "vicinity": 1, "suffix_window": 3},
    "block": {"kv_cache": "block"},
}

SELECTIONS = {
    "one": {},
    "steps": {"max_denoising_steps": 3},
    "dream": {"max_denoising_steps": 3, "step_schedule": "dream"},
    "bernoulli": {"max_denoising_steps": 3, "step_schedule": "bernoulli"},
    "random": {"remasking": "random", "max_denoising_steps": 3},
    "margin": {"remasking": "margin"},
    "drawn": {"remasking": "entropy", "remasking_temperature": 1.0},
    "rising": {"suppress_eos": "rising"},
    "threshold": {"threshold": 0.6},
    "threshold-plan": {"threshold": 0.9, "max_denoising_steps": 3},
    "factor": {"factor": 1.5},
    "reference-factor": {"factor": 1.5, "factor_compat": "fast_dllm"},
    "frechet": {"frechet_margin": 0.1},
    "entropy-bound": {"entropy_bound": 0.8, "remasking": "entropy"},
    "hierarchical": {"threshold": 0.8, "low_threshold": 0.4},
    "context": {"threshold": 0.8, "threshold_relaxation": 0.4},
    "klass": {"threshold": 0.4, "kl_threshold": 0.2},
    "wino": {"threshold": 0.3, "verify_threshold": 0.7},
    "slowfast": {"threshold": 0.7, "exploration_steps": 2, "span_threshold": 0.6},
    "credit": {"threshold": 0.8, "credit_weight": 0.7},
    "prophet": {"commit_gaps": [3.0, 2.5, 2.0]},
    "stable": {"stable_steps": 1, "stable_entropy": 2.0},
    "calibrated": {"remasking": "position_calibrated"},
}

REVISIONS = {
    "none": {},
    "remask": {"remask_threshold": 0.6},
    "edit": {"editing_threshold": 0.5, "max_post_steps": 2},
    "running": {"running_confidence": True},
}

TABLES = (REGIONS, FORWARDS, SELECTIONS, REVISIONS)
CHANCE = ("bernoulli", "random", "drawn")


def combine(*names):
    """The settings of a combination, `None` if it is refused."""
    settings = {}
    for table, name in zip(TABLES, names, strict=True):
        settings |= table[name]
    region, forward, _, _ = names
    if (region == "block-causal") != (forward == "block") and forward != "full":
        return None
    if region == "block-causal" and {"verify_threshold", "exploration_steps"} & set(settings):
        return None
    # such models have a threshold by themselves
    if region == "block-causal" and not {"threshold", "factor", "frechet_margin", "entropy_bound"} & set(settings):
        settings["threshold"] = None
    # given text is no suffix to leave out
    if region == "gaps" and "suffix_window" in settings:
        return None
    try:
        check_complete(DiffusionGenerationConfig(**settings))
    except ValueError:
        return None
    return settings


ALLOWED = {names: combined for names in product(*TABLES) if (combined := combine(*names)) is not None}


def is_run(names):
    """Whether a combination is run: all without a revision, and of the others a third, every pair of names in it."""
    places = [list(table).index(name) for table, name in zip(TABLES, names, strict=True)]
    return places[3] == 0 or sum(places) % 3 == 0 or os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


RUN = [names for names in ALLOWED if is_run(names)]


@pytest.fixture(scope="module")
def models():
    models = {}
    for block_causal in (False, True):
        model = peaked_llada(
            3, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16
        ).double()
        # an end of text now and then
        model.get_output_embeddings().weight.data[42] *= 1.6
        models[block_causal] = as_block_causal(model) if block_causal else model
    return models


def inputs_of(region):
    """Rows with their attention mask, and each row without padding."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 40, (length,), generator=generator) for length in (6, 4)]
    if region == "gaps":
        rows = [torch.cat([row[:2], torch.full((5,), 40), row[2:4], torch.full((4,), 40), row[-1:]]) for row in rows]
    longest = max(len(row) for row in rows)
    batch = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=42) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    return batch, mask, rows


def check(output, row, start, settings, region, forwards=None):
    sequence, trace = output.sequences[row, start:].tolist(), output.trace[row]
    given = [position for position, token in enumerate(trace.start) if token != 40]
    masks = [position for position, token in enumerate(trace.start) if token == 40]
    # what was given stays, and no mask is left
    assert [sequence[position] for position in given] == [trace.start[position] for position in given]
    assert 40 not in sequence
    # after the first end of text, nothing; none before text that was given
    ends = [position for position in masks if position < len(sequence) and sequence[position] == 42]
    if region == "gaps":
        assert all(position > given[-1] for position in ends)
    elif ends:
        assert all(token == 42 for token in sequence[ends[0] :])
    # every step writes a token or more, only where masks were, and never two where nothing is revised
    written = set()
    for event in trace.events:
        assert set(event.positions) <= set(masks)
        assert any(token != 40 for token in event.tokens)
        if not {"remask_threshold", "editing_threshold", "verify_threshold", "running_confidence"} & set(settings):
            assert 40 not in event.tokens
            assert not written & set(event.positions)
        written |= set(event.positions)
    # the budget
    blocks = -(-len(masks) // settings["block_length"]) + 1
    extra = blocks * (settings["max_post_steps"] + 1) if "editing_threshold" in settings else 0
    assert len(trace.events) <= len(masks) + extra
    if "max_denoising_steps" in settings:
        assert len(trace.events) <= blocks * settings["max_denoising_steps"] + extra or "remask_threshold" in settings
    # and no forward pass that writes nothing, but those that look for edits
    if forwards is not None:
        assert len(trace.events) <= forwards <= len(trace.events) + extra


def check_alike(together, alone):
    """A row in a batch is the row alone, padded to the longest."""
    assert torch.equal(together[: len(alone)], alone)
    assert set(together[len(alone) :].tolist()) <= {42}


@pytest.mark.parametrize("names", RUN, ids="-".join)
def test_properties(models, names):
    region, forward, selection, _ = names
    settings = ALLOWED[names]
    model = models[region == "block-causal"]
    batch, attention_mask, rows = inputs_of(region)
    call = model.infill if region == "gaps" else model.generate
    arguments = {**settings, "output_trace": True, "pad_token_id": 42}
    if region != "gaps":
        arguments["max_new_tokens"] = 9
    if selection == "calibrated":
        arguments["token_frequencies"] = torch.linspace(0, 1, 48)
    alone = []
    for row in rows:
        output = call(row[None], **arguments)
        check(output, 0, 0, settings, region, output.num_forwards)
        alone.append(output.sequences[0])
    if forward == "delayed":
        return
    together = call(batch, attention_mask=attention_mask, **arguments)
    for number, row in enumerate(rows):
        start = batch.shape[1] - len(row)
        check(together, number, start, settings, region)
        if selection not in CHANCE:
            check_alike(together.sequences[number, start:], alone[number])


def test_the_matrix_is_not_empty():
    counts = {
        name: sum(name == names[place] for names in ALLOWED) for place, table in enumerate(TABLES) for name in table
    }
    assert min(counts.values()) >= 3
    # verification and spans take no cache, and go with three regions
    assert counts["wino"] == counts["slowfast"] == 3
    # nine plans on two regions, five on gaps, two that are block-causal; the delayed cache takes no revision
    assert counts["threshold"] == 3 * (2 * 9 + 5 + 2) - 2 * 3


def test_every_pair_is_run():
    def pairs(every):
        twos = list(combinations(range(len(TABLES)), 2))
        return {(first, second, names[first], names[second]) for names in every for first, second in twos}

    assert pairs(RUN) == pairs(ALLOWED)


@pytest.fixture
def waits(monkeypatch):
    """Counts whatever makes the host wait for a tensor."""
    count = [0]

    def counted(method):
        def call(*args, **kwargs):
            count[0] += 1
            return method(*args, **kwargs)

        return call

    for name in ("tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    getitem, setitem = torch.Tensor.__getitem__, torch.Tensor.__setitem__

    def is_mask(key):
        return isinstance(key, torch.Tensor) and key.dtype == torch.bool

    def get(self, key):
        count[0] += any(map(is_mask, key if isinstance(key, tuple) else (key,)))
        return getitem(self, key)

    def put(self, key, value):
        count[0] += any(map(is_mask, key if isinstance(key, tuple) else (key,)))
        return setitem(self, key, value)

    monkeypatch.setattr(torch.Tensor, "__getitem__", get)
    monkeypatch.setattr(torch.Tensor, "__setitem__", put)
    return count


@pytest.mark.parametrize(
    ("forward", "selection", "revision"),
    [
        *(("full", selection, "none") for selection in SELECTIONS),
        *((forward, "threshold", "none") for forward in FORWARDS if forward not in ("full", "block")),
        ("full", "threshold", "remask"),
        ("full", "threshold", "edit"),
        ("full", "steps", "running"),
    ],
    ids=str,
)
def test_a_step_waits_once(models, waits, forward, selection, revision):
    between, last = [], []

    def enter(*_):
        between.extend(waits[0] - value for value in last)

    def leave(*_):
        last[:] = waits

    handles = [models[False].register_forward_pre_hook(enter), models[False].register_forward_hook(leave)]
    settings = combine("whole", forward, selection, revision)
    if selection == "calibrated":
        settings = settings | {"token_frequencies": torch.linspace(0, 1, 48)}
    models[False].generate(inputs_of("whole")[2][0][None], max_new_tokens=9, **settings)
    for handle in handles:
        handle.remove()
    assert len(between) > 0 and set(between) == {1}


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("selection", ["threshold", "klass", "wino", "slowfast"])
def test_guidance(models, forward, selection):
    region = "block-causal" if forward == "block" else "blocks"
    settings = combine(region, forward, selection, "none")
    if settings is None:
        return
    batch, attention_mask, rows = inputs_of(region)
    arguments = {**settings, "cfg_scale": 2.0, "max_new_tokens": 9}
    model = models[region == "block-causal"]
    alone = [model.generate(row[None], **arguments)[0] for row in rows]
    assert not torch.equal(alone[0], model.generate(rows[0][None], **{**arguments, "cfg_scale": 0.0})[0])
    if forward != "delayed":
        together = model.generate(batch, attention_mask=attention_mask, **arguments)
        for number, row in enumerate(rows):
            check_alike(together[number, batch.shape[1] - len(row) :], alone[number])
