"""Merge an adapter into its model: a checkpoint of its own, which needs no peft and which other code reads.

llada merge tuned merged
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import check_name


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="folder or repository of the adapter")
    parser.add_argument("output_dir", help="folder to write, which does not exist or is empty")
    parser.add_argument("--base", help="folder or repository of the model (default: the one that the adapter names)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "bfloat16", "float16", "float32"],
        default="auto",
        help="dtype of the merged weights (default: that of the model)",
    )


def run(args: argparse.Namespace) -> None:
    import llada  # noqa: F401  registers the models

    # isort: split
    from transformers import AutoModelForMaskedLM

    from llada.export.model_card import create_model_card
    from llada.trainers.diffusion_trainer import refuse_virtual_tokens

    check_name(args.adapter)
    target = Path(args.output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{args.output_dir} holds something already; name another folder.")
    peft_config = _read_config(args.adapter)
    refuse_virtual_tokens(peft_config)
    base = args.base or peft_config.base_model_name_or_path
    if not base:
        raise ValueError("The adapter does not say which model it is for; name it with `--base`.")
    check_name(base)
    revision = None if args.base else peft_config.revision
    model = AutoModelForMaskedLM.from_pretrained(base, revision=revision, dtype=args.dtype).eval()
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{base} is quantised: an update would be rounded to its few steps and lost in part. Name the model that "
            "it was made from with `--base`; adapters trained on either fit both."
        )
    adapted = _load_adapter(model, args.adapter, peft_config)
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    tokenizer = _load_tokenizer(args.adapter, base, revision)
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    card = create_model_card(
        merged, target.name, base_model=base, training={"merged": f"{peft_config.peft_type.value} adapter"}
    )
    card.save(target / "README.md")
    print(f"The model is in {args.output_dir}/.")


def _read_config(adapter: str) -> "PeftConfig":
    from peft import PeftConfig

    if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no adapter_config.json: it is a whole model, and nothing is to be merged.")
    return PeftConfig.from_pretrained(adapter)


def _load_adapter(model: "PreTrainedModel", adapter: str, peft_config: "PeftConfig") -> "PeftModel":
    """The model with its adapter, one that was made with published code too."""
    from peft import PeftModel

    from llada.modeling_llada.adapters import translate_adapter_config

    adapted = PeftModel.from_pretrained(model, adapter, config=translate_adapter_config(peft_config, model))
    names = {name.rpartition(".")[2] for name in getattr(adapted.base_model, "targeted_module_names", ())}
    if model.config.tie_word_embeddings and names & {"embed_tokens", "lm_head"}:
        raise ValueError(
            "The adapter changes the embedding or the head, which are one matrix in this model: merged into it, it "
            "would change both. Use the adapter as it is."
        )
    return adapted


def _load_tokenizer(adapter: str, base: str, revision: str | None) -> Any:
    """The tokenizer that was saved with the adapter, or that of the model."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    if cached_file(adapter, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is not None:
        return AutoTokenizer.from_pretrained(adapter)
    return AutoTokenizer.from_pretrained(base, revision=revision)


__all__ = ["add_parser", "run"]
