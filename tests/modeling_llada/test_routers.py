"""Which experts see a token: against a router that takes one token at a time, and what must not make a difference."""

import json

import pytest
import torch
from golden import load_golden, rounding
from naive_moe import naive_moe_logits, naive_sigmoid_routes, naive_softmax_routes
from safetensors.torch import load_file
from tiny_models import tiny_llada2_moe, tiny_llada_moe

from llada import LLaDA2MoeConfig, LLaDAMoEConfig
from llada.generation import preset
from llada.generation.forwards.canvas_cache import CanvasCache
from llada.modeling_llada.routers import ROUTERS, SigmoidRouter, SoftmaxRouter, TopKRouter, find_routing_blocks


HIDDEN, EXPERTS = 32, 16


SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 4}


def softmax_router(**settings) -> tuple[SoftmaxRouter, LLaDAMoEConfig]:
    config = LLaDAMoEConfig(**SIZES | {"num_experts": EXPERTS, "num_experts_per_tok": 4} | settings)
    return draw(SoftmaxRouter(config)), config


def sigmoid_router(**settings) -> tuple[SigmoidRouter, LLaDA2MoeConfig]:
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}
    config = LLaDA2MoeConfig(**SIZES | experts | settings)
    return draw(SigmoidRouter(config)), config


@torch.no_grad()
def draw(router: TopKRouter) -> TopKRouter:
    router.weight.normal_(std=0.3)
    for bias in router.buffers():
        bias.uniform_(-0.3, 0.3)
    return router


def blocks_of(positions: torch.Tensor, size: int, is_token: torch.Tensor | None = None):
    return find_routing_blocks(positions, is_token, len(positions) if is_token is None else len(is_token), size)


def assert_routes(answer, expected) -> None:
    _, weights, indices = answer
    # in bfloat16 two experts of a token may have the same score
    order = indices.argsort(dim=-1)
    ordered = [sorted(zip(experts, weights, strict=True)) for experts, weights in expected]
    assert indices.gather(-1, order).tolist() == [[expert for expert, _ in pairs] for pairs in ordered]
    expected_weights = torch.stack([torch.stack([weight for _, weight in pairs]) for pairs in ordered])
    torch.testing.assert_close(weights.gather(-1, order), expected_weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm_topk_prob": True}, {"routed_scaling_factor": 2.5}, {"num_experts": 4, "routed_scaling_factor": None}],
    ids=str,
)
def test_the_softmax_router_chooses_the_most_probable(settings, dtype):
    router, config = softmax_router(**settings)
    router.to(dtype)
    x = torch.randn(3, 7, HIDDEN, dtype=dtype)
    logits, weights, indices = router(x)
    assert logits.dtype == weights.dtype == dtype
    torch.testing.assert_close(logits, x.flatten(0, 1) @ router.weight.T)
    settings = config.to_dict() | {"routed_scaling_factor": config.routed_scaling_factor or 1}
    assert_routes((logits, weights, indices), naive_softmax_routes(logits, settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_group": 2, "topk_group": 1},
        {"n_group": 8, "topk_group": 8},
        {"n_group": 1, "topk_group": 1},
        {"n_group": None, "topk_group": None},
        {"norm_topk_prob": False},
        {"norm_topk_prob": None},
        {"routed_scaling_factor": 1},
        {"num_experts_per_tok": 1},
    ],
    ids=str,
)
def test_the_sigmoid_router_keeps_to_the_best_groups(settings):
    router, config = sigmoid_router(**settings)
    x = torch.randn(3, 7, HIDDEN)
    answer = router(x)
    torch.testing.assert_close(answer[0], x.flatten(0, 1) @ router.weight.T)
    assert_routes(answer, naive_sigmoid_routes(answer[0], router.expert_bias, config.to_dict(), list(range(21))))
    if config.n_group in (2, 4):
        size = EXPERTS // config.n_group
        for experts in answer[2].tolist():
            assert len({expert // size for expert in experts}) <= config.topk_group


def test_one_expert_keeps_its_probability():
    router, _ = sigmoid_router(num_experts_per_tok=1, routed_scaling_factor=1)
    logits, weights, indices = router(torch.randn(2, 9, HIDDEN))
    torch.testing.assert_close(weights, logits.sigmoid().gather(1, indices))


def test_the_bias_chooses_and_does_not_weigh():
    router, _ = sigmoid_router(n_group=None)
    x = torch.randn(1, 9, HIDDEN)
    router.expert_bias.zero_()
    router.expert_bias[5] = 10
    logits, weights, indices = router(x)
    assert (indices == 5).any(dim=1).all()
    # what the bias chose comes first; its weight is its probability among the chosen
    chosen = logits.sigmoid().gather(1, indices)
    torch.testing.assert_close(weights, 2.5 * chosen / chosen.sum(dim=1, keepdim=True))


def test_the_sigmoid_router_computes_in_float32():
    router, _ = sigmoid_router()
    x = torch.randn(2, 9, HIDDEN).to(torch.bfloat16)
    router.to(torch.bfloat16)
    answer = router(x)
    assert answer[0].dtype == answer[1].dtype == torch.float32
    exact, _ = sigmoid_router()
    exact.load_state_dict({name: tensor.float() for name, tensor in router.state_dict().items()})
    for got, expected in zip(answer, exact(x.float()), strict=True):
        assert torch.equal(got, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router(x)[0], answer[0])


@pytest.mark.parametrize("move", [lambda r: r.to(torch.bfloat16), lambda r: r.half(), lambda r: r.to(torch.float64)])
def test_the_bias_stays_float32(move):
    router, _ = sigmoid_router()
    bias = router.expert_bias.clone()
    move(router)
    assert router.weight.dtype != torch.float32
    assert router.expert_bias.dtype == torch.float32
    assert torch.equal(router.expert_bias, bias)
    router.to("meta")
    assert router.expert_bias.is_meta
    empty = router.to_empty(device="cpu").bfloat16()
    assert empty.expert_bias.dtype == torch.float32 and not empty.expert_bias.is_meta


def test_fresh_routers_are_unbiased():
    model = tiny_llada2_moe(num_hidden_layers=3)
    model.model.layers[1].mlp.gate.expert_bias.fill_(7)
    for _, module in model.named_modules():
        module._is_hf_initialized = False
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor._is_hf_initialized = False
    model.init_weights()
    assert (model.model.layers[1].mlp.gate.expert_bias == 0).all()
    assert repr(model.model.layers[1].mlp.gate) == "SigmoidRouter((8, 32), top_k=3)"


def test_routers_by_name():
    assert ROUTERS == {"softmax": SoftmaxRouter, "sigmoid": SigmoidRouter}
    assert type(tiny_llada_moe().model.layers[0].mlp.gate) is SoftmaxRouter
    assert type(tiny_llada2_moe().model.layers[1].mlp.gate) is SigmoidRouter


class TestBlockRouting:
    """LLaDA2.2: the tokens of a block share a pool of experts."""

    @pytest.mark.parametrize("capacity", [4, 6, 16])
    @pytest.mark.parametrize("length", [16, 13, 3], ids=["whole blocks", "a short last block", "less than a block"])
    def test_one_token_at_a_time(self, capacity, length):
        router, config = sigmoid_router(expert_capacity=capacity, block_size=8)
        x = torch.randn(2, length, HIDDEN)
        answer = router(x, blocks_of(torch.arange(length).expand(2, -1), 8))
        expected = []
        for logits in answer[0].split(length):
            expected += naive_sigmoid_routes(logits, router.expert_bias, config.to_dict(), list(range(length)))
        assert_routes(answer, expected)

    def test_the_published_size(self):
        router, _ = sigmoid_router(num_experts=256, num_experts_per_tok=8, expert_capacity=48, block_size=32)
        x = torch.randn(2, 80, HIDDEN)
        indices = router(x, blocks_of(torch.arange(80).expand(2, -1), 32))[2].view(2, 80, 8)
        plain, _ = sigmoid_router(num_experts=256, num_experts_per_tok=8, n_group=None)
        plain.load_state_dict(router.state_dict())
        free = plain(x)[2].view(2, 80, 8)
        for start in (0, 32, 64):
            for row in (0, 1):
                assert len(indices[row, start : start + 32].unique()) <= 48
        assert max(len(free[row, :32].unique()) for row in (0, 1)) > 48

    def test_room_for_all_experts_is_no_limit(self):
        router, _ = sigmoid_router(expert_capacity=EXPERTS, block_size=4)
        plain, _ = sigmoid_router(n_group=None)
        plain.load_state_dict(router.state_dict())
        x = torch.randn(2, 10, HIDDEN)
        for got, expected in zip(router(x, blocks_of(torch.arange(10)[None].expand(2, -1), 4)), plain(x), strict=True):
            assert torch.equal(got, expected)

    def test_groups_are_not_used(self):
        # the files of LLaDA2.2 still have them
        router, _ = sigmoid_router(expert_capacity=6, block_size=4, n_group=8, topk_group=4)
        other, _ = sigmoid_router(expert_capacity=6, block_size=4, n_group=None, topk_group=None)
        other.load_state_dict(router.state_dict())
        x, blocks = torch.randn(2, 8, HIDDEN), blocks_of(torch.arange(8).expand(2, -1), 4)
        assert torch.equal(router(x, blocks)[2], other(x, blocks)[2])

    def test_blocks_do_not_depend_on_each_other(self):
        router, _ = sigmoid_router(expert_capacity=5, block_size=4)
        x = torch.randn(2, 12, HIDDEN)
        indices = router(x, blocks_of(torch.arange(12).expand(2, -1), 4))[2].view(2, 12, -1)
        for start in (0, 4, 8):
            part = x[1:, start : start + 4]
            alone = router(part, blocks_of(torch.arange(start, start + 4)[None], 4))[2]
            assert torch.equal(alone, indices[1, start : start + 4])

    @pytest.mark.parametrize(
        ("positions", "expected"),
        [
            ([[0, 1, 2, 3, 4, 5, 6, 7, 8]], [0, 0, 0, 0, 1, 1, 1, 1, 2]),
            # a part of a text that begins inside a block
            ([[6, 7, 8, 9, 10, 11, 12]], [0, 0, 1, 1, 1, 1, 2]),
            # padding on the left that is left out of the count, in both ways of writing it
            ([[0, 0, 0, 1, 2, 3, 4]], [0, 1, 2, 2, 2, 2, 3]),
            ([[1, 1, 0, 1, 2, 3, 4]], [0, 1, 2, 2, 2, 2, 3]),
            # a noisy and a clean copy of one text, each a whole number of blocks or not, and packed documents
            ([[0, 1, 2, 3, 0, 1, 2, 3]], [0, 0, 0, 0, 1, 1, 1, 1]),
            ([[0, 1, 2, 0, 1, 2]], [0, 0, 0, 1, 1, 1]),
            # positions may be scaled
            ([[0.0, 0.5, 3.5, 4.0]], [0, 0, 0, 1]),
        ],
        ids=["plain", "inside", "padding at 0", "padding at 1", "two copies", "two short copies", "scaled"],
    )
    def test_where_blocks_begin(self, positions, expected):
        blocks = blocks_of(torch.tensor(positions), 4)
        assert blocks.block_ids.tolist() == [expected]
        assert blocks.is_token.all() and blocks.is_token.shape == blocks.block_ids.shape

    def test_one_row_of_positions_for_all(self):
        blocks = find_routing_blocks(torch.arange(6)[None], None, 3, 4)
        assert blocks.block_ids.tolist() == [[0, 0, 0, 0, 1, 1]] * 3

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("given", ["mask", "mask and positions", "positions"])
    def test_padding_has_no_say(self, side, given):
        model = tiny_llada2_moe(expert_capacity=3, block_size=4)
        row = torch.randint(0, 40, (1, 10))
        padding = torch.full((1, 3), 42)
        padded = torch.cat([padding, row] if side == "left" else [row, padding], dim=1)
        mask = (torch.arange(13) >= 3) if side == "left" else (torch.arange(13) < 10)
        tokens = slice(3, None) if side == "left" else slice(10)
        arguments = {"attention_mask": mask[None].long(), "position_ids": (mask.cumsum(0) - 1).clamp(min=0)[None]}
        if given == "mask":
            del arguments["position_ids"]
        if given == "positions":
            # attention has to be told, routers see it
            arguments["attention_mask"] = mask[None, None, None, :].expand(1, 1, 13, 13)
            arguments["attention_mask"] = arguments["attention_mask"] & model_blocks(arguments["position_ids"], 4)
        alone = model(row).logits
        torch.testing.assert_close(model(padded, **arguments).logits[:, tokens], alone, rtol=0, atol=1e-5)
        # and without, experts or positions are others
        assert (model(padded).logits[:, tokens] - alone).abs().max() > 1e-3

    def test_attention_blocks_hold_whole_routing_blocks(self):
        model = tiny_llada2_moe(expert_capacity=4, block_size=4)
        ids = torch.randint(0, 40, (2, 10))
        for length in (0, 4, 8):
            assert model(ids, block_length=length).logits.isfinite().all()
        for length in (2, 6):
            with pytest.raises(
                ValueError, match=rf"`block_length={length}` is not a multiple of 4, the length of the"
            ):
                model(ids, block_length=length)
        # without a pool there is nothing to fit
        assert tiny_llada2_moe()(ids, block_length=6).logits.isfinite().all()

    @pytest.mark.parametrize("seed", [2, 4])
    def test_a_cached_part_may_begin_inside_a_block(self, seed):
        """As in a batch with padding on the left: what the part lacks the votes for is not stored."""
        torch.manual_seed(seed)
        model = tiny_llada2_moe(expert_capacity=3, block_size=4, num_hidden_layers=3)
        ids = torch.randint(0, 40, (2, 20))
        mask = (torch.arange(20) >= torch.tensor([[0], [3]])).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(ids, attention_mask=mask, position_ids=positions).logits
        cache = CanvasCache(positions)
        model(ids, attention_mask=mask, past_key_values=cache, cache_position=torch.arange(20))
        keys = [key.clone() for key in cache.keys]
        # at position 8 of the first row, and 5 of the second, whose next block begins at place 11
        for _ in range(2):
            part = torch.arange(8, 20)
            arguments = {"attention_mask": mask, "past_key_values": cache, "cache_position": part}
            logits = model(ids[:, 8:], **arguments).logits
            torch.testing.assert_close(logits[0], expected[0, 8:], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[1, 3:], expected[1, 11:], rtol=0, atol=1e-5)
        assert (logits[1, :3] - expected[1, 8:11]).abs().max() > 1e-3
        for key, before in zip(cache.keys, keys, strict=True):
            torch.testing.assert_close(key, before, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("block_length", [4, 8])
    def test_generation_with_a_cache(self, block_length):
        prompt = torch.randint(0, 40, (3, 13))
        mask = (torch.arange(13) >= torch.tensor([[0], [5], [9]])).long()
        settings = {"max_new_tokens": 20, "block_length": block_length, "mask_token_id": 40, "eos_token_id": 42}
        for seed in range(4):
            torch.manual_seed(seed)
            model = tiny_llada2_moe(expert_capacity=4, block_size=4, num_hidden_layers=3, num_experts=16)
            config = preset("llada2", **settings)
            cached, recomputed = (
                model.generate(prompt, config, attention_mask=mask, kv_cache=kind) for kind in ("block", None)
            )
            assert torch.equal(cached, recomputed)
            for row, padding in enumerate((0, 5, 9)):
                alone = model.generate(prompt[row : row + 1, padding:], config)[0]
                assert torch.equal(alone, cached[row, padding : padding + len(alone)])

    def test_a_second_implementation_gives_the_same_logits(self, tmp_path):
        model = tiny_llada2_moe(num_hidden_layers=3, expert_capacity=4, block_size=4)
        model.save_pretrained(tmp_path)
        tensors, config = load_file(tmp_path / "model.safetensors"), model.config.to_dict()
        row = torch.randint(0, 40, (11,))
        visible = torch.arange(11)[None, :] // 4 <= torch.arange(11)[:, None] // 4
        expected = naive_moe_logits(tensors, config, row, visible)
        torch.testing.assert_close(model(row[None]).logits[0], expected, rtol=0, atol=1e-5)
        # full attention moves no routing block
        expected = naive_moe_logits(tensors, config, row)
        torch.testing.assert_close(model(row[None], block_length=0).logits[0], expected, rtol=0, atol=1e-5)
        unlimited = naive_moe_logits(tensors, config | {"expert_capacity": 8}, row)
        assert (unlimited - expected).abs().max() > 1e-3


def model_blocks(positions: torch.Tensor, size: int) -> torch.Tensor:
    blocks = positions // size
    return blocks[:, None, None, :] <= blocks[:, None, :, None]


@pytest.mark.parametrize("name", ["llada_moe", "llada2_moe"])
def test_the_second_implementation_gives_the_published_answers(name):
    golden = load_golden(name)
    tensors, config = load_file(golden.folder / "model.safetensors"), read_config(golden)
    rows = golden.expected["logits.input_ids"]
    logits = torch.stack([naive_moe_logits(tensors, config, row) for row in rows])
    torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))
    if name == "llada2_moe":
        visible = model_blocks(torch.arange(32)[None], 8)[0, 0]
        logits = torch.stack([naive_moe_logits(tensors, config, row, visible) for row in rows])
        expected = golden.expected["logits.block_causal_8"]
        torch.testing.assert_close(logits, expected, **rounding(expected))


def read_config(golden) -> dict:
    config = json.loads((golden.folder / "config.json").read_text(encoding="utf-8"))
    return {"head_dim": config["hidden_size"] // config["num_attention_heads"], **config}
