"""Small models, data and arguments for the trainers."""

import gc
import os

import pytest
import torch
from chat_templates import PUBLISHED_CHAT_TEMPLATE
from datasets import Dataset, disable_progress_bars
from demo_checkpoint import load_demo

from llada import ILLaDAConfig, ILLaDAForCausalLM, LLaDAConfig, LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer
from llada.trainers.trajectories import collect_trajectories


# trl sends telemetry unless it runs in a CI
os.environ["CI"] = "1"
disable_progress_bars()
# what is imported lives to the end, and every run of a trainer would look through it for garbage
gc.collect()
gc.freeze()


@pytest.fixture
def published_tokenizer(tiny_tokenizer):
    """A tokenizer with LLaDA-8B's chat template, and like it without a mask token."""
    tiny_tokenizer.chat_template = PUBLISHED_CHAT_TEMPLATE
    tiny_tokenizer.mask_token = None
    return tiny_tokenizer


@pytest.fixture
def make_model():
    """Makes a small model with the ids of the tiny tokenizer, the same one in every call."""

    def make(family="llada", **settings):
        torch.manual_seed(0)
        common = {
            "vocab_size": 320,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "mask_token_id": 300,
            "eos_token_id": 299,
            "pad_token_id": 299,
            # as the tokenizer has it, or the base writes it into the configuration and says so
            "bos_token_id": 295,
        } | settings
        if family == "illada":
            return ILLaDAForCausalLM(ILLaDAConfig(num_key_value_heads=2, **common))
        return LLaDAModelLM(LLaDAConfig(**common))

    return make


@pytest.fixture
def make_args(tmp_path):
    """Makes arguments for short runs on the CPU."""

    def make(arguments_class=LLaDASFTConfig, **settings):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "activation_checkpointing": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return arguments_class(**(defaults | settings))

    return make


@pytest.fixture
def pairs():
    """Eight pairs of prompt and completion of different lengths."""
    return Dataset.from_dict(
        {
            "prompt": [f"{a}+{b}=" for a, b in zip(range(8), range(5, 13), strict=True)],
            "completion": [str(10 ** (n % 4) + n) for n in range(8)],
        }
    )


@pytest.fixture
def conversations():
    """Six conversations of one, two and three turns."""
    return Dataset.from_dict(
        {
            "messages": [
                [
                    message
                    for turn in range(1 + n % 3)
                    for message in (
                        {"role": "user", "content": f"q{n}{turn}"},
                        {"role": "assistant", "content": f"answer {n} {turn}"},
                    )
                ]
                for n in range(6)
            ]
        }
    )


@pytest.fixture
def make_trainer(make_model, make_args, tiny_tokenizer, pairs):
    """Makes a fine-tuning trainer. Keywords are arguments of the trainer, or of its configuration."""

    def make(model=None, train_dataset=None, processing_class=None, **settings):
        names = ("data_collator", "eval_dataset", "peft_config", "optimizers", "callbacks")
        given = {name: settings.pop(name) for name in names if name in settings}
        return LLaDASFTTrainer(
            model=make_model() if model is None else model,
            args=settings.pop("args", None) or make_args(**settings),
            train_dataset=pairs if train_dataset is None else train_dataset,
            processing_class=processing_class or tiny_tokenizer,
            **given,
        )

    return make


@pytest.fixture(scope="session")
def demo():
    """Model, tokenizer and facts of the demo checkpoint, which no test changes."""
    return load_demo()


@pytest.fixture(scope="session")
def questions(demo):
    """Questions that the checkpoint never saw, with their answers."""
    return [(f"{question}\n", right) for fact in demo[2].held_out for question, right in (fact.forward, fact.reverse)]


@pytest.fixture(scope="session")
def traces(demo, questions):
    """What the checkpoint answers, and in which order."""
    model, tokenizer, _ = demo
    return collect_trajectories(
        model, tokenizer, Dataset.from_dict({"prompt": [question for question, _ in questions]}), batch_size=32
    )
