"""Every field of transformers' generation config works, is refused, or is one that says nothing of the text."""

import pytest
import torch
from tiny_models import tiny_llada
from transformers import CompileConfig, GenerationConfig

from llada import DiffusionGenerationConfig
from llada.generation.foreign_settings import FOREIGN_NAMES, NEUTRAL, REFUSED


PROMPT = torch.tensor([[1, 2, 3, 2, 3]])
SAMPLED = {"do_sample": True, "temperature": 1.5}
LONG = {"eos_early_stop": False}

# field -> settings that make a difference, and what they are compared with
EFFECTS = {
    "bad_words_ids": ({"bad_words_ids": [[0], [5], [6], [7], [8]]}, {}),
    "begin_suppress_tokens": ({"begin_suppress_tokens": list(range(24))}, {}),
    "do_sample": (SAMPLED, {}),
    "epsilon_cutoff": (SAMPLED | {"epsilon_cutoff": 0.9}, SAMPLED),
    "eta_cutoff": (SAMPLED | {"eta_cutoff": 0.9}, SAMPLED),
    "exponential_decay_length_penalty": ({"exponential_decay_length_penalty": (1, 9.0)} | LONG, LONG),
    "guidance_scale": ({"guidance_scale": 4.0}, {}),
    "max_length": ({"max_new_tokens": None, "max_length": 9}, {}),
    "max_new_tokens": ({"max_new_tokens": 4}, {}),
    "max_time": ({"max_time": 0.0, "block_length": 1}, {}),
    "min_length": (LONG | {"min_length": 17, "eos_token_id": list(range(20))}, LONG),
    "min_new_tokens": (LONG | {"min_new_tokens": 12, "eos_token_id": list(range(20))}, LONG),
    "min_p": (SAMPLED | {"min_p": 0.9}, SAMPLED),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 1}, {}),
    "num_return_sequences": (SAMPLED | {"num_return_sequences": 2}, SAMPLED),
    "repetition_penalty": ({"repetition_penalty": 9.0}, {}),
    "sequence_bias": ({"sequence_bias": [[[9], 50.0]]}, {}),
    "suppress_tokens": ({"suppress_tokens": list(range(24))}, {}),
    "temperature": (SAMPLED, {"do_sample": True, "temperature": 0.1}),
    "top_h": (SAMPLED | {"top_h": 0.1}, SAMPLED),
    "top_k": (SAMPLED | {"top_k": 1}, SAMPLED),
    "top_p": (SAMPLED | {"top_p": 0.1}, SAMPLED),
    "typical_p": (SAMPLED | {"typical_p": 0.1}, SAMPLED),
}
# tested elsewhere: what they do is not another text for the same model
ELSEWHERE = {
    "bos_token_id",
    "compile_config",
    "disable_compile",
    "eos_token_id",
    "pad_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "stop_strings",
    "use_cache",
}
METADATA = {"transformers_version"}

# a value of every field that is refused
GIVEN = {
    "cache_implementation": "static",
    "compile_config": CompileConfig(),
    "assistant_ensemble_weight": 0.5,
    "num_assistant_tokens_schedule": "heuristic",
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "early_stopping": True,
    "token_healing": True,
    "use_mtp": True,
    "low_memory": True,
    "is_assistant": True,
}


def test_every_field_is_one_of_these():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    groups = (set(EFFECTS), ELSEWHERE, METADATA, set(REFUSED))
    assert set().union(*groups) == fields
    assert sum(map(len, groups)) == len(fields)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_llada()


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_that_works_changes_the_text(name, model):
    settings, without = EFFECTS[name]
    texts = []
    for given in (settings, without):
        torch.manual_seed(0)
        texts.append(model.generate(PROMPT, **{"max_new_tokens": 12, "block_length": 4, "eos_token_id": 42} | given))
    assert texts[0].shape != texts[1].shape or not torch.equal(*texts)


@pytest.mark.filterwarnings("ignore:Passing ContinuousBatchingConfig:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_would_do_nothing_is_refused(name, model):
    value = GIVEN.get(name, 3)
    with pytest.raises(ValueError, match=f"`{name}={value!r}` is not supported: .*Leave it out"):
        DiffusionGenerationConfig(**{name: value})
    with pytest.raises(ValueError, match=f"`{name}={value!r}` is not supported"):
        model.generate(PROMPT, **{name: value})


def test_what_transformers_writes_for_them_is_taken():
    written = {name: value for name, value in GenerationConfig._get_default_generation_params().items()}
    assert {name: written[name] for name in NEUTRAL if name in written} == {
        name: value for name, value in NEUTRAL.items() if name in written
    }
    DiffusionGenerationConfig.from_dict(written)
    DiffusionGenerationConfig.from_dict(NEUTRAL)


def test_an_id_of_zero_is_an_id():
    with pytest.raises(ValueError, match="`forced_bos_token_id=0` is not supported"):
        DiffusionGenerationConfig(forced_bos_token_id=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_id": 126336}, "`mask_id` \\(write `mask_token_id`\\)"),
        ({"logits_eos_inf": True}, 'write `suppress_eos="logits"`'),
        ({"confidence_eos_eot_inf": True}, 'write `suppress_eos="confidence"`'),
        ({"alg_temp": 0.5, "threshold_back": 0.9}, "write `remasking_temperature`.*write `verify_threshold`"),
        ({"dual_cache": True}, 'write `kv_cache="dual"`'),
        ({"stop": ["."]}, "write `stop_strings`"),
        ({"prompt": "a"}, "write `input_ids`"),
        ({"stepss": 3}, "write `steps`"),
        # not the nearest name, which is refused
        ({"num_beam": 3}, "Unknown generation setting: `num_beam`(?! \\(write `num_beams)"),
        ({"zzzz": 3}, "Unknown generation setting: `zzzz`\\."),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_unknown_names_get_a_hint(settings, message, model):
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPT, **settings)
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(**settings)


def test_hints_name_what_there_is():
    known = {*DiffusionGenerationConfig.field_names(), "input_ids"}
    assert {hint.partition("=")[0] for hint in FOREIGN_NAMES.values()} <= known
    assert not known & set(FOREIGN_NAMES)


def test_a_mask_with_a_hole_is_called_one(model):
    holes = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1]])
    for call in (model.generate, model.infill):
        with pytest.raises(ValueError, match="`attention_mask` has a hole: a 0 between tokens"):
            call(PROMPT.expand(2, -1), attention_mask=holes)
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(PROMPT, attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))


def test_no_length_at_all(model):
    with pytest.raises(ValueError, match="`max_new_tokens` and `max_length` are both None"):
        model.generate(PROMPT, max_new_tokens=None)
