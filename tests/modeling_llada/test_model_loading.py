"""Where weights and buffers end up: devices, dtypes, sizes, processes."""

import copy
import fnmatch
import io
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from accelerate import infer_auto_device_map
from golden import load_golden, rounding
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe

from llada import ILLaDAForCausalLM, LLaDA2MoeModelLM, LLaDAModelLM, LLaDAMoEModelLM


CLASSES = {
    "llada": LLaDAModelLM,
    "illada": ILLaDAForCausalLM,
    "llada_moe": LLaDAMoEModelLM,
    "llada2_moe": LLaDA2MoeModelLM,
}
TINY = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


def assert_frequencies_are_exact(model: LLaDAModelLM) -> None:
    """1 / theta^(2i / d), in float32, on the device of the model."""
    rotary, dim = model.model.rotary_emb, model.config.rotary_dim
    exact = torch.tensor([model.config.rope_theta ** (-2 * i / dim) for i in range(dim // 2)])
    for buffer in (rotary.inv_freq, rotary.original_inv_freq):
        assert buffer.dtype == torch.float32
        assert buffer.device == model.device
        torch.testing.assert_close(buffer, exact, rtol=1e-6, atol=0)
    assert rotary.inv_freq.data_ptr() != rotary.original_inv_freq.data_ptr()
    assert not any("inv_freq" in key for key in model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frequencies_survive_every_dtype(name, dtype):
    model = TINY[name]()
    assert_frequencies_are_exact(model)
    before = model.model.rotary_emb.inv_freq.clone()
    for move in (
        lambda m: m.to(dtype),
        lambda m: m.to("cpu", dtype),
        lambda m: m.type(dtype),
        lambda m: copy.deepcopy(m).to(dtype).float(),
        lambda m: CLASSES[name].from_pretrained(load_golden(name).folder, dtype=dtype),
    ):
        moved = move(copy.deepcopy(model))
        assert_frequencies_are_exact(moved)
        if moved.config.head_dim == model.config.head_dim:
            assert torch.equal(moved.model.rotary_emb.inv_freq, before)
    assert model.to(dtype).model.norm.weight.dtype == dtype


def test_half_precision_methods_spare_the_frequencies():
    for model in (tiny_llada().half(), tiny_llada().bfloat16()):
        assert_frequencies_are_exact(model)


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}]
)
@pytest.mark.parametrize(
    "materialise",
    [
        lambda model, source: model.load_state_dict(source.state_dict(), assign=True),
        lambda model, source: model.to_empty(device="cpu").load_state_dict(source.state_dict()),
        lambda model, source: model.to("meta").to_empty(device="cpu").load_state_dict(source.state_dict()),
    ],
    ids=["assign", "to_empty", "to meta and back"],
)
def test_models_built_on_the_meta_device(name, materialise, scaling):
    source = TINY[name](rope_scaling=scaling)
    with torch.device("meta"):
        model = CLASSES[name](source.config)
    assert all(parameter.is_meta for parameter in model.parameters())
    materialise(model, source)
    model.tie_weights()
    if scaling is None:
        assert_frequencies_are_exact(model)
    expected = source(IDS).logits
    torch.testing.assert_close(model.eval()(IDS).logits, expected, **rounding(expected))


def test_a_model_can_stay_on_the_meta_device(name):
    with torch.device("meta"):
        model = CLASSES[name](TINY[name]().config)
    model.to(torch.bfloat16).to("meta")
    assert model.model.rotary_emb.inv_freq.is_meta
    assert model(IDS.to("meta")).logits.shape == (2, 12, 48)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}],
    ids=str,
)
def test_from_pretrained_places_weights_and_frequencies(name, kwargs):
    golden = load_golden(name)
    model = CLASSES[name].from_pretrained(golden.folder, **kwargs)
    assert_frequencies_are_exact(model)
    logits = model(golden.expected["logits.input_ids"]).logits
    torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))


def test_layers_offloaded_to_disk(name, tmp_path):
    golden = load_golden(name)
    places = ["model.embed_tokens", "model.dropout", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    device_map = dict.fromkeys(places, "cpu") | {"model.layers.1": "disk", "model.layers.2": "disk"}
    model = CLASSES[name].from_pretrained(golden.folder, device_map=device_map, offload_folder=tmp_path)
    assert all(parameter.is_meta for parameter in model.model.layers[1].parameters())
    logits = model(golden.expected["logits.input_ids"]).logits
    torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))


def test_a_layer_is_never_split(name):
    # layers of one size
    model = TINY[name](num_hidden_layers=6, **{"first_k_dense_replace": 0} if name == "llada2_moe" else {})
    assert {type(layer).__name__ for layer in model.model.layers} == set(model._no_split_modules)
    size = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    device_map = infer_auto_device_map(
        model, max_memory={0: int(2.5 * size), "cpu": 10**9}, no_split_module_classes=model._no_split_modules
    )
    layers = {place for place in device_map if "layers" in place}
    assert layers == {f"model.layers.{index}" for index in range(6)}
    assert {device_map[place] for place in layers} == {0, "cpu"}


def test_the_tensor_parallel_plan_covers_every_layer(name):
    # a layer without experts, and one with
    model = TINY[name](**{"moe_layer_freq": [0, 1]} if name == "llada_moe" else {})
    plan = {pattern: style for pattern, style in model.tp_plan.items() if "layers" in pattern}
    linear = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in key]
    assert len(linear) == {"llada": 7 + 7, "illada": 7 + 7, "llada_moe": 7 + 4, "llada2_moe": 7 + 7}[name]
    keys = {key for key, _ in (*model.named_modules(), *model.named_parameters())}
    for key in linear:
        styles = [style for pattern, style in plan.items() if fnmatch.fnmatch(key, pattern)]
        # what reads the residual stream is split by rows of its output, what writes to it by columns of its input
        style = "rowwise" if key.endswith(("o_proj", "down_proj")) else "colwise"
        # the fused matrix on disk cannot be split into queries, keys, values and shards at once, and no release of
        # LLaDA-MoE has layers without experts
        whole = {"llada2_moe": ".self_attn.", "llada_moe": ".mlp."}.get(name)
        assert styles == ([] if whole and whole in key else [style]), key
    for pattern in plan:
        assert any(fnmatch.fnmatch(key, pattern) for key in keys), pattern
    assert model.tp_plan["lm_head"] == "colwise_gather_output"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [64, 40])
def test_resizing(name, rows, tied, tmp_path):
    model = TINY[name](tie_word_embeddings=tied, mask_token_id=30, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    before = model(IDS).logits
    model.resize_token_embeddings(rows)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (rows, 32)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.vocab_size == rows
    logits = model(IDS, labels=IDS).logits
    kept = min(rows, 48)
    torch.testing.assert_close(logits[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["vocab_size"] == rows
    if name == "llada":
        assert written["embedding_size"] == rows
    torch.testing.assert_close(CLASSES[name].from_pretrained(tmp_path)(IDS).logits, logits, **rounding(logits))


def test_embeddings_can_be_exchanged(name):
    model = TINY[name](tie_word_embeddings=False)
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    embedding, head = torch.nn.Embedding(48, 32), torch.nn.Linear(32, 48, bias=False)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    assert model.model.embed_tokens is embedding and model.lm_head is head
    assert torch.equal(model(IDS).logits, head(model.model(inputs_embeds=embedding(IDS)).last_hidden_state))
    assert model.model.get_output_embeddings() is None


def test_copies_compute_the_same(name):
    model = TINY[name]()
    logits = model(IDS).logits
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    fresh = CLASSES[name](model.config)
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh.eval()):
        torch.testing.assert_close(other(IDS).logits, logits, **rounding(logits))
        assert_frequencies_are_exact(other)
    # and share nothing
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    assert torch.equal(model(IDS).logits, logits)


def test_models_travel_to_spawned_processes():
    model = tiny_llada().requires_grad_(False)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        output = pool.submit(model, IDS).result(timeout=120)
        torch.testing.assert_close(output.logits, model(IDS).logits)


def test_the_attention_backend_can_be_chosen_at_any_time(name):
    golden = load_golden(name)
    for backend in ("eager", "sdpa"):
        model = CLASSES[name].from_pretrained(golden.folder, attn_implementation=backend)
        assert model.config._attn_implementation == backend
        assert all(layer.self_attn.config._attn_implementation == backend for layer in model.model.layers)
        assert not any(layer.self_attn.is_causal for layer in model.model.layers)
    # the best one that is there
    assert CLASSES[name].from_pretrained(golden.folder).config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="nonsense"):
        CLASSES[name].from_pretrained(golden.folder, attn_implementation="nonsense")
