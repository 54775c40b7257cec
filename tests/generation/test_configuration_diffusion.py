"""The generation config: its checks, its names, its presets."""

import json
import re

import pytest
import torch
from demo_checkpoint import load_demo
from tiny_models import tiny_llada, tiny_llada2_moe
from transformers import GenerationConfig

from llada import DiffusionGenerationConfig, LLaDA2MoeModelLM, LLaDAConfig
from llada.generation import preset
from llada.generation.arguments import read_arguments
from llada.generation.presets import PRESETS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 0}, "`block_length` must be a positive integer, but is 0"),
        ({"steps": 1.5}, "`steps` must be a positive integer, but is 1.5"),
        ({"max_denoising_steps": True}, "`max_denoising_steps` must be a positive integer, but is True"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be a positive integer"),
        ({"remasking": "best"}, "`remasking` must be one of .*'low_confidence', .*'random'.* but is 'best'"),
        ({"suppress_eos": "yes"}, "`suppress_eos` must be one of .*'logits', 'confidence'.* but is 'yes'"),
        ({"rng_compat": "dream"}, "`rng_compat` must be one of .*'llada'.* but is 'dream'"),
        ({"rng_compat": "llada", "eos_early_stop": True}, "eos_early_stop=False"),
        ({"steps": 4, "max_denoising_steps": 4}, "set the same thing"),
        ({"cfg_scale": 1.0, "guidance_scale": 2.0}, "set the same thing"),
        ({"cfg_scale": -0.5}, "`cfg_scale` must be at least 0"),
        ({"guidance_scale": 0.5}, "`guidance_scale` must be at least 1"),
        ({"temperature": -1.0}, "`temperature` must be at least 0"),
        ({"temperature": 0.0, "do_sample": True}, "is greedy"),
        ({"use_cache": False, "kv_cache": "dual"}, "`use_cache=False` and `kv_cache='dual'` exclude each other"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(**settings)


def test_checks_hold_on_update_too():
    with pytest.raises(ValueError, match="beam search"):
        DiffusionGenerationConfig().update(num_beams=2)


@pytest.mark.parametrize(("temperature", "do_sample"), [(0, False), (0.0, False), (0.7, True)])
def test_a_temperature_alone_decides_about_sampling(temperature, do_sample):
    config = DiffusionGenerationConfig(temperature=temperature)
    assert config.do_sample is do_sample
    assert config.temperature == (temperature or None)


def test_a_greedy_config_can_be_saved(tmp_path):
    DiffusionGenerationConfig(temperature=0, steps=4).save_pretrained(tmp_path)
    loaded = DiffusionGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.do_sample, loaded.temperature, loaded.steps) == (False, None, 4)


def test_unset_fields_stay_unset_until_they_are_needed():
    config = DiffusionGenerationConfig(block_length=8)
    assert config.max_new_tokens is config.do_sample is config.remasking is None
    complete = config.with_defaults(LLaDAConfig())
    assert (complete.block_length, complete.max_new_tokens, complete.do_sample) == (8, 128, False)
    assert (complete.mask_token_id, complete.eos_token_id, complete.pad_token_id) == (126336, 126081, 126081)


def test_defaults_respect_the_other_name_of_a_setting():
    config = DiffusionGenerationConfig(max_length=20, guidance_scale=1.5).with_defaults(LLaDAConfig())
    assert config.max_new_tokens is None
    assert config.cfg_scale is None
    assert config.guidance == 0.5


def test_entries_of_other_programs_survive_a_round_trip(tmp_path):
    config = DiffusionGenerationConfig.from_dict({"steps": 4, "somebody_elses": [1, 2]})
    assert config.somebody_elses == [1, 2]
    config.save_pretrained(tmp_path)
    assert DiffusionGenerationConfig.from_pretrained(tmp_path).somebody_elses == [1, 2]


def test_only_what_is_set_is_saved(tmp_path):
    config = DiffusionGenerationConfig.from_dict({"steps": 4, "factor": None, "somebody_elses": None})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    saved.pop("transformers_version")
    assert saved == {"steps": 4, "somebody_elses": None}


def test_keyword_arguments_of_from_pretrained(tmp_path):
    DiffusionGenerationConfig(steps=4).save_pretrained(tmp_path)
    config, unused = DiffusionGenerationConfig.from_pretrained(tmp_path, steps=8, foreign=1, return_unused_kwargs=True)
    assert config.steps == 8
    assert unused == {"foreign": 1}


def test_ids_of_the_end_of_text_are_a_list():
    assert DiffusionGenerationConfig().eos_token_ids == []
    assert DiffusionGenerationConfig(eos_token_id=3).eos_token_ids == [3]
    assert DiffusionGenerationConfig(eos_token_id=[3, 4]).eos_token_ids == [3, 4]


def test_every_field_is_documented():
    ours = DiffusionGenerationConfig.field_names() - set(vars(GenerationConfig()))
    assert {"block_length", "entropy_bound", "remasking", "threshold"} <= ours
    for name in ours:
        assert re.search(rf"\b{name}\b.* \(`", DiffusionGenerationConfig.__doc__)


@pytest.mark.parametrize("switch_off", [lambda: DiffusionGenerationConfig(threshold=None, kv_cache=None), "later"])
def test_none_in_a_config_switches_off(switch_off, tmp_path):
    model = tiny_llada2_moe()
    assert (model.generation_config.threshold, model.generation_config.kv_cache) == (0.95, "block")
    if switch_off == "later":
        config = DiffusionGenerationConfig(threshold=0.5, kv_cache="block")
        config.threshold = config.kv_cache = None
    else:
        config = switch_off()
    for passed, stored in ((config, model.generation_config), (None, config)):
        model.generation_config = stored
        merged, _ = read_arguments(model, torch.tensor([[1, 2]]), passed, {})
        assert merged.threshold is merged.kv_cache is None
    # also where it is read again and completed
    model.save_pretrained(tmp_path)
    loaded = LLaDA2MoeModelLM.from_pretrained(tmp_path)
    assert loaded.generation_config.threshold is loaded.generation_config.kv_cache is None
    merged, _ = read_arguments(loaded, torch.tensor([[1, 2]]), None, {"threshold": 0.5})
    assert (merged.threshold, merged.kv_cache) == (0.5, None)


def test_none_in_a_config_of_transformers_is_what_nobody_set():
    merged, _ = read_arguments(tiny_llada2_moe(), torch.tensor([[1, 2]]), GenerationConfig(max_new_tokens=8), {})
    assert (merged.max_new_tokens, merged.threshold, merged.kv_cache) == (8, 0.95, "block")


def test_use_cache_says_whether_there_is_one():
    model = tiny_llada2_moe()
    tokens = torch.tensor([[1, 2]])

    def kv_cache(*args):
        return read_arguments(model, tokens, *args)[0].kv_cache

    assert kv_cache(None, {"use_cache": True}) == "block"
    assert kv_cache(None, {"use_cache": False}) is None
    assert kv_cache(GenerationConfig(use_cache=False), {}) is None
    # what is said last counts
    assert kv_cache(GenerationConfig(use_cache=False), {"kv_cache": "block"}) == "block"
    assert DiffusionGenerationConfig(use_cache=False).with_defaults(model.config).kv_cache is None


class TestPreset:
    def test_is_a_plain_config_with_the_published_values(self):
        config = preset("llada")
        assert isinstance(config, DiffusionGenerationConfig)
        assert (config.max_new_tokens, config.steps, config.block_length) == (128, 128, 128)
        assert (config.do_sample, config.cfg_scale, config.remasking) == (False, 0.0, "low_confidence")

    def test_overrides(self):
        config = preset("llada", max_denoising_steps=8, temperature=0.5)
        assert (config.steps, config.max_denoising_steps, config.do_sample) == (None, 8, True)
        assert preset("llada", temperature=0.5, do_sample=False).do_sample is False

    @pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("llada2")])
    def test_every_one_decodes(self, name):
        config = preset(name, max_new_tokens=12, block_length=6, **({"steps": 6} if name == "llada" else {}))
        model = tiny_llada()
        answer = model.generate(torch.tensor([[1, 2, 3]]), generation_config=config)
        assert answer.shape[1] <= 15
        assert not (answer == model.config.mask_token_id).any()
        assert f'"{name}"' in preset.__doc__

    @pytest.mark.parametrize("name", PRESETS)
    def test_is_complete(self, name):
        torch.manual_seed(0)
        published, clean = name.startswith("llada2"), {"max_new_tokens": 12}
        if name == "llada":
            clean |= {"steps": 12, "block_length": 12}
        model = tiny_llada2_moe() if published else load_demo()[0]
        prompt = torch.tensor([[3, 4, 5]])
        expected = None
        for leak in (
            {},
            {"max_denoising_steps": 4, "remasking": "random", "suppress_eos": "logits"},
            {"factor": 0.5, "suffix_window": 2, "remask_threshold": 0.4, "cfg_scale": 1.0},
            {"threshold": 0.1, "low_threshold": 0.05, "do_sample": True, "temperature": 0.9, "top_k": 2},
            {"guidance_scale": 3.0, "repetition_penalty": 9.0, "use_cache": False, "suppress_tokens": [7, 8]},
        ):
            # what the checkpoint has set, as `from_pretrained` completes it
            model.generation_config = DiffusionGenerationConfig(**leak).with_defaults(model.config)
            torch.manual_seed(0)
            output = model.generate(
                prompt, generation_config=preset(name, **clean), return_dict_in_generate=True, output_trace=True
            )
            found = (output.num_forwards, output.sequences.tolist(), output.trace[0].step_of)
            expected = found if expected is None else expected
            assert found == expected

    def test_takes_its_own_number_of_forwards(self):
        # the checkpoint has four steps per block, which its threshold does not ask for
        model = load_demo()[0]
        assert model.generation_config.max_denoising_steps == 4
        settings = {"max_new_tokens": 12, "block_length": 12, "threshold": 1.0}
        output = model.generate(
            torch.tensor([[3, 4, 5]]), generation_config=preset("fast-dllm", **settings), return_dict_in_generate=True
        )
        assert output.num_forwards >= 12

    def test_stays_complete_where_it_is_stored(self, tmp_path):
        model = tiny_llada2_moe()
        model.generation_config = preset("llada", max_new_tokens=6, steps=6)
        model.save_pretrained(tmp_path)
        loaded = LLaDA2MoeModelLM.from_pretrained(tmp_path).generation_config
        assert loaded.threshold is loaded.kv_cache is None
        assert loaded.to_diff_dict() == model.generation_config.to_diff_dict() | {
            name: getattr(model.config, name)
            for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
        }

    def test_overrides_replace_the_other_of_a_pair(self):
        config = preset("fast-dllm", factor=1.0)
        assert (config.threshold, config.factor) == (None, 1.0)
        config = preset("llada", max_length=12)
        assert (config.max_new_tokens, config.max_length) == (None, 12)
        config = preset("llada", guidance_scale=2.0)
        assert (config.cfg_scale, config.guidance) == (None, 1.0)
        config = preset("eb", temperature=0)
        assert (config.do_sample, config.temperature) == (False, None)
        merged, _ = read_arguments(tiny_llada(), torch.tensor([[1, 2]]), preset("llada", max_length=12), {})
        assert (merged.max_new_tokens, merged.max_length) == (None, 12)

    def test_leaves_tokens_and_stopping_to_the_checkpoint(self):
        model = tiny_llada()
        model.generation_config.update(eos_token_id=[42, 7], max_time=60.0, max_new_tokens=9)
        merged, _ = read_arguments(model, torch.tensor([[1, 2]]), preset("hierarchical"), {})
        assert (merged.eos_token_id, merged.max_time, merged.max_new_tokens) == ([42, 7], 60.0, 9)

    def test_refusals(self):
        with pytest.raises(ValueError, match="no preset 'lada'; choose one of .*'llada'"):
            preset("lada")
        with pytest.raises(ValueError, match="write `max_new_tokens`"):
            preset("llada", gen_length=3)
