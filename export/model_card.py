"""The README of a model on the Hub: what it is, and how to run it."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..generation.printable import escaped


_FAMILIES = {
    "illada": ("iLLaDA", "https://arxiv.org/abs/2606.25331"),
    "llada": ("LLaDA", "https://arxiv.org/abs/2502.09992"),
    "llada2_moe": ("LLaDA2", "https://arxiv.org/abs/2512.15745"),
    "lladamoe": ("LLaDA-MoE", "https://arxiv.org/abs/2509.24389"),
}
_GAP = re.compile(r"_{3,}(\d*)")
_REPO_ID = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
# what Markdown and HTML take for more than itself
_MARKUP = re.compile(r"([\\*\[\]<>|])")
# how the card that transformers writes for any model begins
_PLACEHOLDER = "# Model Card for Model ID"
_TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_name }}

{% if adapter -%}
A PEFT adapter for a masked diffusion language model of the [{{ family }}]({{ paper }}) family
{%- else -%}
A masked diffusion language model of the [{{ family }}]({{ paper }}) family
{%- endif -%}
{%- if base_model %}, trained from [{{ base_model }}](https://huggingface.co/{{ base_model }}){% endif -%}
{%- if dataset_name %} on {{ dataset_name }}{% endif %}.
{% if block_causal -%}
It writes one block of tokens after the other. Within a block it does not write from left to right: it starts from
masks and replaces them in any order, each choice seeing all of the block and the text before it.
{%- else -%}
It does not write from left to right: it starts from masks and replaces them in any order, each choice seeing the text
on both of its sides. So it can continue a prompt and fill in gaps in the middle of a text alike.
{%- endif %}

{{ facts }}

## How to run it

The code is in the package `llada-hf`, which is imported as `llada` (`llada` on PyPI is another package). Install it
from a checkout of its repository:

```bash
pip install "{% if adapter %}.[train]{% else %}.{% endif %}"
```

```python
import llada  # registers the model with transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({{ repo_id }})
model = AutoModelForMaskedLM.from_pretrained({{ repo_id }})

inputs = tokenizer({{ prompt }}, return_tensors="pt")
sequences = model.generate(**inputs, max_new_tokens={{ length }}, block_length={{ length }}, steps={{ length }})
print(tokenizer.decode(sequences[0], skip_special_tokens=True))
```

Fewer `steps` are faster, more are better. For a chat, make `inputs` with
`tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)`.

To fill in gaps, write mask tokens where text is missing:

```python
mask = tokenizer.decode([model.config.mask_token_id])
# the end of the text says that nothing more follows
inputs = tokenizer({{ gaps }} + tokenizer.eos_token, return_tensors="pt")
print(tokenizer.decode(model.infill(**inputs)[0], skip_special_tokens=True))
```
{%- if training %}

## How it was trained

| | |
|---|---|
{%- for name, value in training.items() %}
| {{ name }} | {{ value }} |
{%- endfor %}
{%- endif %}

## Citation

```bibtex
@article{nie2025large,
  title={Large Language Diffusion Models},
  author={Nie, Shen and Zhu, Fengqi and You, Zebin and Zhang, Xiaolu and Ou, Jingyang and Hu, Jun and Zhou, Jun and
          Lin, Yankai and Wen, Ji-Rong and Li, Chongxuan},
  journal={arXiv preprint arXiv:2502.09992},
  year={2025}
}
```
"""


def _is_repo_id(name: str | None) -> bool:
    return name is not None and _REPO_ID.fullmatch(name) is not None and not os.path.exists(name)


def _name(name: str) -> str:
    """A name that may be published: of a folder or file on this machine only the last part."""
    path = os.path.expanduser(name)
    is_nested = name.count("/") > 1 and "://" not in name and " " not in name
    is_local = os.path.isabs(path) or name.startswith(".") or is_nested or os.path.exists(path)
    return os.path.basename(os.path.abspath(path)) if is_local else name


def _literal(text: str) -> str:
    """A string of Python, on one line and without characters that cannot be seen."""
    return escaped(json.dumps(text, ensure_ascii=False))


def _inline(text: Any) -> str:
    """Text that stays on its line of Markdown and in its cell of a table, and means nothing there but itself."""
    return _MARKUP.sub(r"\\\1", escaped(" ".join(str(text).split())))


def _with_masks(gaps: str) -> str:
    """A Python expression for a text with gaps, in terms of `mask`."""
    literal = _literal(gaps)
    expression = _GAP.sub(lambda gap: f'" + mask * {gap[1] or 1} + "', literal)
    return expression.removeprefix('"" + ').removesuffix(' + ""')


def create_model_card(
    model: Any,
    repo_id: str,
    *,
    base_model: str | None = None,
    dataset_name: str | Sequence[str] | None = None,
    tags: Iterable[str] = (),
    training: Mapping[str, Any] | None = None,
    prompt: str = "The capital of France is",
    gaps: str = "The ___3 of France is Paris.",
) -> ModelCard:
    """
    Writes the card of a model or of an adapter for one.

    `model.push_to_hub` puts this card into a repository that has none. For an adapter, push the card first, PEFT keeps
    what it finds: `create_model_card(peft_model, repo_id).push_to_hub(repo_id)`.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        repo_id (`str`):
            The repository or folder that the card's code loads from. Of the path of a folder only the last part is
            published.
        base_model (`str`, *optional*):
            The model this one was trained from. Defaults to the repository `model` was loaded from, if it is one.
        dataset_name (`str` or `Sequence[str]`, *optional*):
            What it was trained on, one dataset or several, of the path of a file the last part. Also goes into the
            metadata if it has the form of a repository id.
        tags (`Iterable[str]`, *optional*):
            Tags besides `llada`, `masked-diffusion` and those added with `model.add_model_tags`.
        training (`Mapping[str, Any]`, *optional*):
            Facts about the training by name, such as `{"learning rate": 2.5e-5}`, shown as a table.
        prompt (`str`, *optional*):
            What the code on the card lets the model continue.
        gaps (`str`, *optional*):
            What it lets the model fill in: `___` stands for one token, `___3` for three. The code puts
            the end of text behind it.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card, with `save(path)` and `push_to_hub(repo_id)`.
    """
    adapter = bool(getattr(model, "peft_config", None)) or getattr(model, "_hf_peft_config_loaded", False)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    config = model.config
    origin = config.name_or_path
    if base_model is None and origin != repo_id and _is_repo_id(origin):
        base_model = origin
    facts = (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, at most {config.max_position_embeddings} "
        f"positions, mask token id {config.mask_token_id}."
    )
    if "sparse" in config.mlp_layer_types:
        facts = f"{config.num_experts} experts per layer of which a token sees {config.num_experts_per_tok}, {facts}"
    if not adapter:
        facts = f"{model.num_parameters():,} parameters, {facts}"
    datasets = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or ())
    published = [name for name in datasets if _is_repo_id(name)]
    family, paper = _FAMILIES[config.model_type]
    data = ModelCardData(
        base_model=base_model if _is_repo_id(base_model) else None,
        datasets=published if len(published) > 1 else next(iter(published), None),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({"llada", "masked-diffusion", *map(escaped, (*(model.model_tags or ()), *tags))}),
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        adapter=adapter,
        base_model=data.base_model,
        block_causal=config.block_causal,
        dataset_name=", ".join(_inline(_name(name)) for name in datasets),
        facts=facts,
        family=family,
        gaps=_with_masks(gaps),
        length=min(32, model.generation_config.max_new_tokens or 32),
        model_name=_inline(Path(_name(repo_id)).name),
        paper=paper,
        prompt=_literal(prompt),
        repo_id=_literal(_name(repo_id)),
        training={_inline(name): _inline(value) for name, value in (training or {}).items()},
    )


def replace_placeholder_card(folder: str | os.PathLike, model: Any, repo_id: str) -> None:
    """
    Replaces the card that transformers writes for any model, and leaves one that somebody wrote.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that is about to be pushed.
        model ([`~transformers.PreTrainedModel`]):
            The model in it.
        repo_id (`str`):
            Where it is pushed to.
    """
    path = Path(folder) / "README.md"
    card = ModelCard.load(path)
    if _PLACEHOLDER in card.text:
        create_model_card(model, repo_id, tags=card.data.tags or ()).save(path)


__all__ = ["create_model_card", "replace_placeholder_card"]
