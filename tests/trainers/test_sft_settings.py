"""What fine-tuning accepts, what it converts, and what it refuses."""

import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from installed_wheel import ROOT
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, TrainingArguments
from trl import DPOConfig, SFTConfig, TrlParser

from llada import ILLaDAForCausalLM, LLaDAModelLM, LLaDAPreTrainingConfig, LLaDASFTConfig, LLaDASFTTrainer
from llada.generation.configuration_diffusion import DEFAULTS
from llada.trainers.diffusion_arguments import MaskedDiffusionArguments
from llada.trainers.sft_recipes import RECIPES


def test_the_defaults_are_those_of_the_paper(tmp_path):
    args = LLaDASFTConfig(str(tmp_path))
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (2.5e-5, 0.1, 50)
    assert (args.num_train_epochs, args.max_length, args.eos_fill, args.multi_turn) == (3, 4096, "longest", "sample")
    assert (args.mask_sampling, args.ratio_sampling, args.mask_schedule) == ("bernoulli", "iid", "linear")
    assert (args.mask_eps, args.min_mask_ratio, args.max_mask_ratio) == (1e-3, 0, 1)
    assert (args.loss_weighting, args.loss_normalization, args.complementary_masks) == ("elbo", "sequence", False)
    pretraining = LLaDAPreTrainingConfig(str(tmp_path))
    assert (pretraining.learning_rate, pretraining.weight_decay, pretraining.warmup_steps) == (4e-4, 0.1, 2000)
    assert (pretraining.sequence_length, pretraining.random_length_probability) == (4096, 0.01)
    assert pretraining.loss_normalization == "token"


@pytest.mark.parametrize("arguments_class", [LLaDASFTConfig, LLaDAPreTrainingConfig])
def test_arguments_can_be_given_on_a_command_line(arguments_class, tmp_path):
    line = f"--output_dir {tmp_path} --mask_sampling exact --max_mask_ratio 0.8 --complementary_masks --warmup_steps 7"
    (args,) = HfArgumentParser(arguments_class).parse_args_into_dataclasses(line.split())
    assert args.mask_sampling == "exact" and args.max_mask_ratio == 0.8 and args.complementary_masks
    assert args.warmup_steps == 7
    help_text = HfArgumentParser(arguments_class).format_help()
    assert all(name in help_text for name in ("--loss_weighting {elbo,uniform}", "--num_eval_draws"))


def test_every_own_argument_is_documented():
    for arguments_class in (MaskedDiffusionArguments, LLaDASFTConfig, LLaDAPreTrainingConfig):
        for name in arguments_class.__annotations__:
            assert name in arguments_class.__doc__, name


def test_a_laptop_needs_no_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("llada.trainers.diffusion_arguments.is_torch_bf16_gpu_available", lambda: True)
    assert LLaDASFTConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert LLaDASFTConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True
    monkeypatch.setattr("llada.trainers.diffusion_arguments.is_torch_bf16_gpu_available", lambda: False)
    assert LLaDASFTConfig(str(tmp_path)).bf16 is False


@pytest.mark.filterwarnings("error::FutureWarning")
def test_checkpointing_is_on_unless_it_is_switched_off_under_either_name(tmp_path):
    assert LLaDASFTConfig(str(tmp_path)).activation_checkpointing is True
    assert LLaDASFTConfig(str(tmp_path), activation_checkpointing=False).gradient_checkpointing is False
    assert LLaDASFTConfig(str(tmp_path), gradient_checkpointing=False).activation_checkpointing is False


def test_no_arguments_are_the_default_ones(make_model, tiny_tokenizer, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model()
    for name, output_dir in (("ada/llada-small", "llada-small-SFT"), ("", "LLaDA-SFT")):
        model.config._name_or_path = name
        trainer = LLaDASFTTrainer(model, train_dataset=pairs, processing_class=tiny_tokenizer)
        assert type(trainer.args) is LLaDASFTConfig and trainer.args.output_dir == output_dir


def test_arguments_of_the_bases_keep_their_values(make_trainer, make_args):
    for arguments_class, own in ((SFTConfig, {"max_length": 77, "eos_token": "<|eot_id|>"}), (TrainingArguments, {})):
        args = make_args(
            arguments_class, learning_rate=0.25, bf16=False, hub_token="secret", adam_beta2=0.5, save_steps=3, **own
        )
        trainer = make_trainer(args=args)
        assert type(trainer.args) is LLaDASFTConfig
        assert (trainer.args.learning_rate, trainer.args.hub_token) == (0.25, "secret")
        assert (trainer.args.adam_beta2, trainer.args.save_steps, trainer.args.warmup_steps) == (0.5, 3, 0)
        assert all(getattr(trainer.args, name) == value for name, value in own.items())
        assert (trainer.args.eos_fill, trainer.args.loss_normalization) == ("longest", "sequence")
        trainer.train()


@pytest.mark.parametrize("arguments_class", [LLaDASFTConfig, LLaDAPreTrainingConfig])
def test_the_token_of_the_hub_is_not_saved(make_args, arguments_class):
    args = make_args(arguments_class, hub_token="secret", bf16=False)
    saved = pickle.dumps(args)
    assert b"secret" not in saved and args.hub_token == "secret"
    again = pickle.loads(saved)
    assert again.hub_token is None and (again.output_dir, again.mask_eps) == (args.output_dir, args.mask_eps)


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
def test_the_pad_token_can_be_chosen(make_trainer, tiny_tokenizer):
    trainer = make_trainer(pad_token="<|eot_id|>", eos_fill="none")
    pad = tiny_tokenizer.convert_tokens_to_ids("<|eot_id|>")
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert len(padding) > 0 and set(padding.tolist()) == {pad} and pad != tiny_tokenizer.eos_token_id
    trainer.train()
    assert trainer.model.config.pad_token_id == trainer.processing_class.pad_token_id == pad
    with pytest.raises(ValueError, match="`pad_token='<nothing>'` is no token of the tokenizer"):
        make_trainer(pad_token="<nothing>")


def test_arguments_of_other_trainers_are_refused(make_trainer, make_args):
    with pytest.raises(ValueError, match="`args` is a DPOConfig, whose .*`beta`.*args=LLaDASFTConfig"):
        make_trainer(args=make_args(DPOConfig, bf16=False))
    with pytest.raises(ValueError, match="`args` is of type dict; write `args=LLaDASFTConfig"):
        make_trainer(args={"max_steps": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_liger_kernel": True}, "use_liger_kernel=True.*`use_liger_kernel=False`"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1.*`label_smoothing_factor=0`"),
        ({"loss_type": "dft"}, "loss_type='dft'.*`loss_type='nll'`"),
        ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end'.*'keep_start'"),
        ({"loss_normalization": "mean"}, "loss_normalization='mean'.*'sequence', 'token', 'masked', 'batch'"),
        ({"loss_normalization": "masked"}, "loss_weighting='elbo'.*twice.*`loss_weighting='uniform'`"),
        ({"edit_ratio": 1.5}, "edit_ratio=1.5.*`0 <= edit_ratio <= 1`"),
        ({"confidence_weight": -1.0}, "confidence_weight=-1.0.*0 or more"),
        ({"confidence_temperature": 0.0}, "confidence_temperature=0.0.*more than 0"),
        ({"num_eval_draws": 0}, "num_eval_draws=0"),
        ({"mask_sampling": "top"}, "mask_sampling='top'"),
        ({"mask_schedule": "sine"}, "mask_schedule='sine'"),
        ({"min_mask_ratio": 0.9, "max_mask_ratio": 0.1}, r"\[0.9, 0.1\]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_cannot_work_are_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_fill": "half"}, "eos_fill='half'"),
        ({"eos_fill": "multiple"}, "eos_fill_length=None"),
        ({"multi_turn": "first"}, "multi_turn='first'"),
        ({"min_eos": -1}, "min_eos=-1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_fills_that_cannot_work_are_refused(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
def test_what_needs_all_logits_is_refused(make_model, make_args, tiny_tokenizer, pairs, name):
    with pytest.raises(ValueError, match=f"`{name}` is not supported.*Leave it out"):
        LLaDASFTTrainer(
            make_model(), make_args(), train_dataset=pairs, processing_class=tiny_tokenizer, **{name: lambda *_: {}}
        )


@pytest.mark.parametrize("kind", ["cp_enabled", "sp_enabled"])
def test_parallelism_that_assumes_causal_attention_is_refused(make_trainer, kind, monkeypatch):
    parallelism = {"cp_enabled": False, "sp_enabled": False, "sp_backend": "none", "tp_size": 1} | {kind: True}
    trainer = make_trainer()
    monkeypatch.setattr(trainer.accelerator.state, "parallelism_config", SimpleNamespace(**parallelism), raising=False)
    with pytest.raises(ValueError, match="Context and sequence parallelism.*`cp_size=1`"):
        trainer._init_diffusion(299)


def test_ranks_of_a_tensor_parallel_group_share_their_noise(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "get_tp_size", lambda: 2)
    places = []
    for rank in range(4):
        state = {"process_index": rank, "num_processes": 4}
        monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(**state))
        places.append(trainer._data_parallel)
    assert places == [(0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    "peft_config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
    ids=["prompt", "prefix"],
)
def test_adapters_of_virtual_tokens_are_refused(make_trainer, peft_config):
    with pytest.raises(ValueError, match="virtual tokens.*LoraConfig"):
        make_trainer(peft_config=peft_config)


def test_adapters_of_the_head_are_refused(make_trainer):
    with pytest.raises(ValueError, match="lm_head"):
        make_trainer(peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))


def test_adapters_that_name_published_modules_are_refused(make_trainer):
    with pytest.raises(ValueError, match="ff_out"):
        make_trainer(peft_config=LoraConfig(target_modules=["q_proj", "ff_out"]))


def test_causal_models_are_refused(make_trainer):
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(ValueError, match="no `mask_token_id`.*TRL's own trainers"):
        make_trainer(LlamaForCausalLM(config))


def test_processors_of_images_are_refused(make_trainer):
    with pytest.raises(ValueError, match="`processing_class` is a SimpleNamespace; write the tokenizer"):
        make_trainer(processing_class=SimpleNamespace())


def test_tokenizers_without_an_end_of_text_are_refused(make_trainer, tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token.*`tokenizer.eos_token`"):
        make_trainer(processing_class=tiny_tokenizer)


def test_the_training_set_is_required(make_model, make_args, tiny_tokenizer):
    with pytest.raises(ValueError, match="train_dataset"):
        LLaDASFTTrainer(make_model(), make_args(), processing_class=tiny_tokenizer)


@pytest.mark.parametrize("model_class", [LLaDAModelLM, ILLaDAForCausalLM])
def test_a_path_is_loaded_with_our_classes(
    golden_llada, golden_illada, tiny_tokenizer, make_args, pairs, tmp_path, model_class
):
    golden = golden_llada if model_class is LLaDAModelLM else golden_illada
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden.folder, folder)
    tiny_tokenizer.save_pretrained(folder)
    # the tokenizer comes from there, too
    trainer = LLaDASFTTrainer(str(folder), make_args(), train_dataset=pairs)
    assert type(trainer.model) is model_class and trainer.model.dtype == torch.float32
    assert trainer.processing_class.eos_token_id == 299
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_path_of_another_model_is_refused(tmp_path, make_args, pairs):
    LlamaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="`llama` model has no `mask_token_id`"):
        LLaDASFTTrainer(str(tmp_path / "llama"), make_args(), train_dataset=pairs)


def test_logging_works_without_trained_steps(make_trainer):
    trainer = make_trainer()
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["loss"] == 1.0


def test_a_dataset_of_images_is_refused(make_trainer):
    rows = Dataset.from_dict({"prompt": ["a"], "completion": ["b"], "image": ["c"]})
    with pytest.raises(ValueError, match="vision"):
        make_trainer(train_dataset=rows)


RECIPE_ROWS = {
    f"| `{name}` | {' | '.join(str(recipe[name]) for recipe in RECIPES.values())} |" for name in RECIPES["paper"]
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_sets_what_is_not_given(make_args, recipe):
    default = {"learning_rate": None, "warmup_steps": None}
    args = make_args(recipe=recipe, **default)
    assert {name: getattr(args, name) for name in RECIPES[recipe]} == RECIPES[recipe]
    # also what is the default of another recipe
    for other in RECIPES.values():
        given = {name: value for name, value in other.items() if value is not None}
        args = make_args(recipe=recipe, **given)
        assert {name: getattr(args, name) for name in given} == given


def test_the_default_recipe_is_that_of_the_paper(make_args):
    assert make_args() == make_args(recipe="paper", mask_sampling="bernoulli")
    # a length that belongs to another fill is not taken over
    assert make_args(recipe="stable", eos_fill="none").eos_fill_length is None
    assert make_args(recipe="stable", eos_fill_length=7).eos_fill_length == 7


def test_recipes_on_the_command_line(tmp_path):
    parser = TrlParser(LLaDASFTConfig)
    folder = str(tmp_path)
    (args,) = parser.parse_args_and_config(["--output_dir", folder, "--recipe", "llada2", "--mask_sampling", "exact"])
    assert args.mask_sampling == "exact" and args.complementary_masks is True and args.max_mask_ratio == 0.8
    text = " ".join(parser.format_help().split())
    for name, changes in RECIPES.items():
        assert f"`{name}`:" in text
        assert f"loss_normalization {changes['loss_normalization']}" in text


def test_the_tables_of_recipes_are_those_of_the_code():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert RECIPE_ROWS <= {line.strip() for line in LLaDASFTConfig.__doc__.splitlines()}
    assert RECIPE_ROWS <= set(page.splitlines())
    assert RECIPES["stable"]["eos_fill_length"] == DEFAULTS["max_new_tokens"]


def test_an_unknown_recipe_is_refused(make_args):
    with pytest.raises(ValueError, match="recipe='fast'.*'paper', 'stable', 'llada2'"):
        make_args(recipe="fast")
