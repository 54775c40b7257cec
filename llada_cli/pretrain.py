"""Pre-train a new model, or one that exists further, on plain text.

  llada pretrain --tokenizer_name GSAI-ML/LLaDA-8B-Base --hidden_size 512 --num_hidden_layers 8 \\
      --num_attention_heads 8 --dataset_name books/ --sequence_length 512 --output_dir small
  llada pretrain --model_name_or_path GSAI-ML/LLaDA-8B-Base --dataset_name books/ --output_dir further

Options are the fields of LLaDAPreTrainingConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them,
those of masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The
dataset is a Hub id, a folder, or a .json, .jsonl, .csv, .parquet or .txt file; a text file is one document.
`--datasets` or `datasets:` in that file mixes several, as trl does.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .training import add_parser, loading_options, parse, train
from .training_data import load_datasets


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# the mask token of the published models
_MASK = "<|mdm_mask|>"
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass
class NewModelArguments:
    """What a new model is like, the weights of which are drawn."""

    _argument_group_name = "new model"

    config_name: str | None = field(
        default=None, metadata={"help": "A configuration: a config.json, a folder with one, or a Hub id."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Whose tokenizer. If not given: that of the model or of the configuration."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of heads of attention."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Number of heads for keys and values."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the feed-forward layers. If not given: three times `hidden_size`."}
    )

    def sizes(self) -> dict[str, int]:
        """The sizes that are given."""
        given = asdict(self)
        return {name: given[name] for name in given if not name.endswith("_name") and given[name] is not None}


def run(args: argparse.Namespace) -> None:
    from llada import LLaDAPreTrainer, LLaDAPreTrainingConfig

    # isort: split
    # the names above say which extra is missing
    from transformers import AutoModelForMaskedLM, set_seed
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    script, mixture, model_config, new, config = parse(
        args, __doc__, ScriptArguments, DatasetMixtureConfig, ModelConfig, NewModelArguments, LLaDAPreTrainingConfig
    )
    name, options = model_config.model_name_or_path, loading_options(model_config)
    tokenizer = _load_tokenizer(new.tokenizer_name, name or new.config_name, options["revision"])
    # the weights of a new model
    set_seed(config.seed)
    if name is None:
        options |= {"config": _configure(new, tokenizer, config.sequence_length, options.pop("revision"))}
        if options["dtype"] == "auto":
            del options["dtype"]
        model = AutoModelForMaskedLM.from_config(**options)
    elif new.config_name or new.sizes():
        given = ", ".join(f"`--{name}`" for name in ("config_name" if new.config_name else "", *new.sizes()) if name)
        raise ValueError(
            f"{given} describe a new model, and `--model_name_or_path` names one that exists: leave one of them out."
        )
    else:
        quantization_config = get_quantization_config(model_config)
        model = AutoModelForMaskedLM.from_pretrained(name, quantization_config=quantization_config, **options)
    train_dataset, eval_dataset = load_datasets(script, config, mixture)
    trainer = LLaDAPreTrainer(
        model=model,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script, mixture)


def _load_tokenizer(name: str | None, model: str | None, revision: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that is named, or that of the model. None if there is just a file, for rows of `input_ids`."""
    from transformers import AutoTokenizer

    if name is not None:
        return AutoTokenizer.from_pretrained(name)
    if model is None or Path(model).is_file():
        return None
    return AutoTokenizer.from_pretrained(model, revision=revision)


def _configure(
    new: NewModelArguments, tokenizer: "PreTrainedTokenizerBase | None", sequence_length: int, revision: str
) -> "PreTrainedConfig":
    """The configuration of a new model: one that exists with other sizes, or that of LLaDA for the tokenizer."""
    from transformers import AutoConfig

    from llada import LLaDAConfig

    sizes = new.sizes()
    if new.config_name is not None:
        return AutoConfig.from_pretrained(new.config_name, revision=revision, **sizes)
    lacking = [f"`--{name}`" for name in _NEEDED if name not in sizes]
    if tokenizer is None or lacking:
        lacking += ["`--tokenizer_name`"] if tokenizer is None else []
        raise ValueError(
            "What is trained? Write `--model_name_or_path` for a model that exists, `--config_name` for a new one "
            f"like another, or describe a new one, for which there lacks {', '.join(lacking)}."
        )
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": _MASK})
    return LLaDAConfig(
        **{"intermediate_size": 3 * sizes["hidden_size"], **sizes},
        max_position_embeddings=sequence_length,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )


__all__ = ["add_parser", "run"]
