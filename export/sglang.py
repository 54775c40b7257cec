"""Handing a checkpoint over to SGLang: whether a folder is what it loads, and how to launch it."""

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from ..generation.configuration_diffusion import DEFAULTS, DiffusionGenerationConfig
from ..generation.presets import preset as published_settings
from ..generation.printable import escaped
from ..modeling_llada.configuration_llada2_moe import LLaDA2MoeConfig


# what is said of SGLang here was read in the sources of this release
SGLANG_VERSION = "0.5.23"
# what that release knows of `LLaDA2MoeModelLM`, whatever the checkpoint says
ARCHITECTURE, MASK_TOKEN_ID = "LLaDA2MoeModelLM", 156895
TURN_END_TOKEN_ID = 156900
_IN_MEMORY = re.compile(r"^model\.embed_tokens\.|\.self_attn\.|\.mlp\.experts\.gate_up_proj$")
_MERGED_EXPERTS = re.compile(r"(.+\.mlp\.experts)\.((?:gate|up|down)_proj)$")
# settings that are carried over, or that SGLang decides by itself
_CARRIED_OVER = {"block_length", "editing_threshold", "max_post_steps", "threshold"}
_OWN_BUSINESS = {"delete_token_id", "kv_cache", "mask_token_id", "output_trace", "split_token_id", "trace_top_k"}


@dataclass(frozen=True)
class SGLangLaunch:
    """
    How to serve a checkpoint with SGLang.

    Args:
        command (`list[str]`):
            The command and its arguments.
        algorithm_config (`dict[str, int | float]`):
            What goes into the file that the command names.
        notes (`list[str]`):
            What the user should know, one sentence or two each.
    """

    command: list[str]
    algorithm_config: dict[str, int | float]
    notes: list[str]

    def script(self) -> str:
        """The same as a shell script, with the notes as comments."""
        # a line feed in the name of a tensor would be a line of the script
        lines = [f"# {escaped(note)}" for note in self.notes]
        lines += [f"cat > {shlex.quote(self.command[-1])} <<'EOF'"]
        lines += [f"{name}: {json.dumps(value)}" for name, value in self.algorithm_config.items()]
        words = [shlex.quote(word) for word in self.command]
        pairs = [" ".join(words[:3])]
        for word in words[3:]:
            pairs.append(word) if word.startswith("--") else pairs.append(f"{pairs.pop()} {word}")
        return "\n".join([*lines, "EOF", " \\\n  ".join(pairs)])


def prepare_sglang(
    folder: str | os.PathLike, preset: str | None = None, tp_size: int = 1, algorithm_file: str = "sglang.yaml"
) -> SGLangLaunch:
    """
    Checks that SGLang would load a checkpoint, and reads off how to decode it. Of the weights only the headers are
    read. The check matters: SGLang skips tensors whose names it does not know, and serves whatever was in memory.

    Args:
        folder (`str` or `os.PathLike`):
            A checkpoint of LLaDA2.0, 2.1 or 2.2, with its tokenizer.
        preset (`str`, *optional*):
            Decode with these published settings, see [`~llada.generation.preset`], and not with those in
            `generation_config.json`.
        tp_size (`int`, *optional*, defaults to 1):
            Number of GPUs that share the weights.
        algorithm_file (`str`, *optional*, defaults to `"sglang.yaml"`):
            Where the settings of the decoding algorithm will be.

    Returns:
        [`SGLangLaunch`]: The launch command, the settings, and notes.

    Raises:
        ValueError: If SGLang would not load the folder, or not all of it: every reason, with what to do about it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} is not a folder with a config.json; for a checkpoint on the Hub, download it first: "
            f"hf download {shlex.quote(str(folder))} --local-dir ..."
        )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = next(iter(settings.get("architectures") or []), None)
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"`architectures` in config.json begins with {architecture!r}; of this family, SGLang {SGLANG_VERSION} "
            f"serves {ARCHITECTURE} only, which is LLaDA2.0, 2.1 and 2.2. For others see docs/checkpoints.md."
        )
    config = LLaDA2MoeConfig.from_dict(settings)
    problems, notes = _check_config(folder, settings, config), list[str]()
    if tp_size < 1 or config.num_attention_heads % tp_size:
        problems.append(f"`tp_size={tp_size}` does not divide the {config.num_attention_heads} attention heads.")
    problems += _check_tokenizer(folder, notes)
    stored = _read_headers(folder, problems)
    problems += _check_tensors(folder, config, stored, notes) if stored else []
    algorithm, algorithm_config = _algorithm(folder, config, preset, problems, notes)
    if problems:
        raise ValueError(
            f"SGLang {SGLANG_VERSION} would not serve {str(folder)!r} correctly:\n"
            + "\n".join(f"- {escaped(problem)}" for problem in problems)
        )

    bias_dtypes = {dtype for name, (dtype, _) in stored.items() if name.endswith(".expert_bias")}
    edits = algorithm_config.get("edit_threshold", 1.0) < 1
    if bias_dtypes == {"F32"} and not edits:
        notes.append(
            "The biases of the routers are float32, as in LLaDA2.1 and 2.2, but the settings edit no token; for those "
            "of the model cards pass --preset llada2.1-quality, llada2.1-speed or llada2.2."
        )
    if bias_dtypes != {"F32"} and (edits or config.expert_capacity):
        notes.append(
            f"The biases of the routers are {', '.join(sorted(bias_dtypes))}, and F32 in LLaDA2.1 and 2.2 as "
            "published: if this is one of them, something rounded them, and some tokens go to other experts."
        )
    dtype = stored["model.word_embeddings.weight"][0]
    if dtype != "BF16":
        notes.append(f"The weights are {dtype}, the releases BF16. Without --dtype, float32 would run as float16.")
    num_bytes = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    notes += [
        f"{num_bytes / 1e9:.1f} GB of weights over {tp_size} GPU(s), and room for the cache of keys and values.",
        "One request at a time unless you add --max-running-requests.",
    ]
    command = ["python", "-m", "sglang.launch_server", "--model-path", str(folder), "--trust-remote-code"]
    command += ["--tp-size", str(tp_size), *(["--dtype", "bfloat16"] if dtype != "BF16" else [])]
    command += ["--dllm-algorithm", algorithm, "--dllm-algorithm-config", algorithm_file]
    header = f"Read off the sources of SGLang {SGLANG_VERSION}, and not run there."
    return SGLangLaunch(command, algorithm_config, [header, *notes])


def published_tensors(config: LLaDA2MoeConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a LLaDA2 checkpoint, as published."""
    head_dim, num_kv_heads = config.head_dim, config.num_key_value_heads
    assert head_dim is not None and num_kv_heads is not None, "configurations derive both"
    width, heads = config.hidden_size, config.num_attention_heads * head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight": (config.vocab_size, width),
        "model.norm.weight": (width,),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, width)

    def add_mlp(name: str, size: int) -> None:
        tensors.update({f"{name}.{half}_proj.weight": (size, width) for half in ("gate", "up")})
        tensors[f"{name}.down_proj.weight"] = (width, size)

    for index, kind in enumerate(config.mlp_layer_types):
        layer = f"model.layers.{index}"
        tensors |= {f"{layer}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        rows = heads + 2 * num_kv_heads * head_dim
        tensors[f"{layer}.attention.query_key_value.weight"] = (rows, width)
        tensors[f"{layer}.attention.dense.weight"] = (width, heads)
        tensors |= {f"{layer}.attention.{part}_layernorm.weight": (head_dim,) for part in ("query", "key")}
        if kind == "dense":
            add_mlp(f"{layer}.mlp", config.intermediate_size)
            continue
        tensors[f"{layer}.mlp.gate.weight"] = (config.num_experts, width)
        tensors[f"{layer}.mlp.gate.expert_bias"] = (config.num_experts,)
        for expert in range(config.num_experts):
            add_mlp(f"{layer}.mlp.experts.{expert}", config.moe_intermediate_size)
        if config.shared_expert_intermediate_size:
            add_mlp(f"{layer}.mlp.shared_experts", config.shared_expert_intermediate_size)
    return tensors


def _check_config(folder: Path, settings: dict[str, Any], config: LLaDA2MoeConfig) -> list[str]:
    problems = []
    target = (settings.get("auto_map") or {}).get("AutoConfig")
    if target is None or ("--" not in target and not (folder / f"{target.split('.')[0]}.py").is_file()):
        missing = "no `auto_map`" if target is None else f"an `auto_map` to {target}, which is not there"
        problems.append(
            f"config.json has {missing}: SGLang has no configuration of its own for this model and needs the "
            'published one. Name it, `"auto_map": {"AutoConfig": "inclusionAI/LLaDA2.1-mini--configuration_llada2_moe.'
            'LLaDA2MoeConfig"}`, or copy configuration_llada2_moe.py of the release here and leave out what is before '
            "the dashes."
        )
    if config.mask_token_id != MASK_TOKEN_ID or config.vocab_size <= MASK_TOKEN_ID:
        problems.append(
            f"SGLang takes {MASK_TOKEN_ID} as the mask token of {ARCHITECTURE}, but this checkpoint has "
            f"`mask_token_id` {config.mask_token_id} and `vocab_size` {config.vocab_size}."
        )
    if config.expert_capacity and None in (config.delete_token_id, config.split_token_id):
        problems.append(
            "`delete_token_id` and `split_token_id` are missing in config.json: 156930 and 156931 in LLaDA2.2."
        )
    return problems


def _check_tokenizer(folder: Path, notes: list[str]) -> list[str]:
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        return [
            f"{' and '.join(missing)} missing: AutoTokenizer.from_pretrained(...), of the release it comes from, "
            f".save_pretrained({str(folder)!r})."
        ]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not tokenizer.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        notes.append("The tokenizer has no chat template, which /v1/chat/completions needs.")
    return []


def _read_headers(folder: Path, problems: list[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor; nothing if that cannot be known of all."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not files:
        adapter = (folder / "adapter_config.json").is_file()
        problems.append(
            "It holds an adapter, which SGLang does not apply to diffusion models: save the whole model, "
            "model.merge_and_unload().save_pretrained(...)."
            if adapter
            else "There is no model.safetensors, and no index of several: save the weights with `save_pretrained`."
        )
    tensors, complete = {}, True
    for name in files:
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    header = file.get_slice(key)
                    tensors[key] = (header.get_dtype(), tuple(header.get_shape()))
        except FileNotFoundError:
            complete = False
            problems.append(f"{name} is missing, which the index names: copy or download it again.")
        except SafetensorError as error:
            complete = False
            problems.append(f"{name} is not a complete file ({error}): copy or download it again.")
    return tensors if complete else {}


def _check_tensors(
    folder: Path, config: LLaDA2MoeConfig, stored: dict[str, tuple[str, tuple[int, ...]]], notes: list[str]
) -> list[str]:
    output = f"{str(folder).rstrip('/')}-published"
    code = (
        f"import llada; model = llada.{ARCHITECTURE}.from_pretrained({str(folder)!r}, dtype='auto'); "
        f"model.use_published_names(); model.save_pretrained({output!r})"
    )
    convert = f"python -c {shlex.quote(code)}"
    shapes: dict[str, tuple[int, ...]] = {}
    merged = False
    for name, (_, shape) in stored.items():
        if (match := _MERGED_EXPERTS.fullmatch(name)) and len(shape) == 3:
            merged = True
            shapes |= {f"{match[1]}.{expert}.{match[2]}.weight": shape[1:] for expert in range(shape[0])}
        else:
            shapes[name] = shape
    if any(_IN_MEMORY.search(name) for name in shapes):
        return [f"The tensors have the names they have in memory, which SGLang skips. Write published ones: {convert}"]
    if any(name.endswith((".mlp.w1", ".mlp.w2")) for name in shapes):
        return ["The experts are fused as dInfer wants them, which SGLang skips: use the folder they were made from."]
    if merged:
        notes.append(
            f"The experts are merged as dFactory trains them. SGLang {SGLANG_VERSION} reads this; other engines need "
            f"the published layout: {convert}"
        )
    expected = published_tensors(config)
    wrong = [
        f"{name} is {shapes[name]} and not {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    problems = []
    if wrong:
        problems.append(f"{len(wrong)} tensors do not fit config.json: {_examples(wrong)}.")
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {_examples(missing)}.")
    if unknown:
        notes.append(f"{len(unknown)} tensors belong to no LLaDA2, and SGLang skips them: {_examples(unknown)}.")
    return problems


def _examples(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def _algorithm(
    folder: Path, config: LLaDA2MoeConfig, preset: str | None, problems: list[str], notes: list[str]
) -> tuple[str, dict[str, int | float]]:
    """The algorithm of SGLang that does what `generate` does with these settings, and its settings."""
    has_file = (folder / "generation_config.json").is_file()
    stored = DiffusionGenerationConfig.from_pretrained(folder) if has_file else DiffusionGenerationConfig()
    given = published_settings(preset) if preset else stored
    if given.threshold is None:
        name = "llada2.2" if config.expert_capacity else "llada2"
        card = published_settings(name)
        given.update(defaults_only=True, **{field: getattr(card, field) for field in _CARRIED_OVER})
        notes.append(f"No `threshold` in generation_config.json: settings of the model card, preset {name!r}.")
    ids = {*stored.eos_token_ids, *([config.eos_token_id] if isinstance(config.eos_token_id, int) else [])}
    if TURN_END_TOKEN_ID not in ids:
        notes.append(
            f"The folder names {sorted(ids)} as the end of a text, and not {TURN_END_TOKEN_ID}, which ends a turn in "
            f'LLaDA2\'s chats: write `"eos_token_id": [156892, {TURN_END_TOKEN_ID}]` into generation_config.json.'
        )

    block_length = given.block_length or config.block_size or DEFAULTS["block_length"]
    if config.expert_capacity and block_length != config.block_size:
        problems.append(
            f"`block_length={block_length}`, but experts are chosen for blocks of {config.block_size}: SGLang needs "
            "the same, change generation_config.json."
        )
    unset = (None, False)
    fields = DiffusionGenerationConfig.field_names() - vars(GenerationConfig()).keys() - _CARRIED_OVER - _OWN_BUSINESS
    lost: dict[str, Any] = {name: getattr(given, name) for name in (*sorted(fields), "do_sample")}
    lost = {name: value for name, value in lost.items() if value not in unset and value != DEFAULTS.get(name)}
    if lost.get("max_denoising_steps", 0) >= block_length:
        del lost["max_denoising_steps"]
    if lost:
        names = ", ".join(f"`{name}={value!r}`" for name, value in lost.items())
        notes.append(
            f"SGLang has nothing like {names}: it takes the likeliest tokens and keeps those above the threshold."
        )

    settings: dict[str, Any] = {"threshold": given.threshold, "block_size": block_length}
    if given.editing_threshold is None and not config.expert_capacity:
        return "LowConfidence", settings
    # nothing is surer than 1
    settings["edit_threshold"] = 1.0 if given.editing_threshold is None else given.editing_threshold
    max_post_steps = given.max_post_steps
    settings["max_post_edit_steps"] = DEFAULTS["max_post_steps"] if max_post_steps is None else max_post_steps
    if not config.expert_capacity:
        return "JointThreshold", settings
    notes.append("LLaDA2.2 chooses experts for whole blocks: on CUDA only, without expert parallelism.")
    return "JointThresholdInDel", settings


__all__ = ["SGLangLaunch", "prepare_sglang", "published_tensors"]
