import pytest
import torch
from safetensors.torch import save_file

from llgbm_pack.sources.adapter import read_adapter
from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D
from llgbm_shards.errors import CheckpointError, UsageError

PREFIX = "base_model.model.model.layers."


def weights_of(dtype=torch.float32, infix="", rank=4):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in (0, 10, 2):
        for name, low, high in (("self_attn.q_proj", 24, 24), ("mlp.down_proj", 32, 24)):
            base = f"{PREFIX}{layer}.{name}"
            weights[f"{base}.lora_A{infix}.weight"] = torch.randn(rank, low, generator=generator).to(dtype)
            weights[f"{base}.lora_B{infix}.weight"] = torch.randn(high, rank, generator=generator).to(dtype)
    return weights


@pytest.mark.parametrize("infix", ["", ".default"])
@pytest.mark.parametrize("order", ["sorted", "dnd"])
@pytest.mark.parametrize("frame", ["dnd", "fp32", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_round_trip(dtype, frame, order, infix):
    weights = weights_of(dtype, infix)
    tokenizer = LoraTokenizer2D(order=order, frame=frame)
    tokens, scales = tokenizer.tokenize(weights)
    layout = tokenizer.layout(weights)
    assert tokens.shape == (layout.pieces_shape if frame == "none" else layout.tokens_shape)
    assert tokens.shape[0] == 3 * (6 + 7)
    assert tokens.dtype == scales.dtype == torch.float32
    back = tokenizer.detokenize(tokens, scales, like=weights)
    assert list(back) == list(weights)
    tolerance = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 2e-6}[dtype]
    for key, tensor in weights.items():
        assert back[key].dtype == dtype
        torch.testing.assert_close(back[key], tensor, rtol=0, atol=tolerance)
    by_layout = tokenizer.detokenize(tokens, scales, like=layout)
    assert set(by_layout) == {key.replace(".default", "") for key in weights}
    for key, tensor in by_layout.items():
        assert torch.equal(tensor, back[key.replace(".weight", f"{infix}.weight")])


def test_orders_hold_the_same_tokens():
    weights = weights_of()
    plain, _ = LoraTokenizer2D().tokenize(weights)
    dnd, _ = LoraTokenizer2D(order="dnd").tokenize(weights)
    # sorted: layers 0, 10, 2, down (7 tokens) before q (6); dnd: layers 0, 2, 10, q before down.
    layers = plain.split(13)
    wanted = torch.cat([part for layer in (0, 2, 1) for part in (layers[layer][7:], layers[layer][:7])])
    assert torch.equal(dnd, wanted)


def test_tokens_alone_are_decoded_from_the_frame():
    weights = weights_of()
    tokenizer = LoraTokenizer2D()
    tokens, _ = tokenizer.tokenize(weights)
    back = tokenizer.detokenize(tokens, like=weights)
    for key, tensor in weights.items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-4, atol=1e-5)


def test_fresh_adapter_comes_back_exactly_zero():
    weights = weights_of(torch.bfloat16)
    for key, tensor in weights.items():
        if "lora_B" in key:
            tensor.zero_()
    for zero_std in ("nan", "zeros"):
        tokenizer = LoraTokenizer2D(zero_std=zero_std)
        tokens, scales = tokenizer.tokenize(weights)
        assert tokens.isnan().any().item() == (zero_std == "nan")
        back = tokenizer.detokenize(tokens, scales, like=weights)
        assert all(not back[key].any() for key in weights if "lora_B" in key)


def test_rank_and_chunk():
    weights = weights_of()
    weights[f"{PREFIX}0.self_attn.q_proj.lora_A.weight"] = torch.randn(2, 24)
    weights[f"{PREFIX}0.self_attn.q_proj.lora_B.weight"] = torch.randn(24, 2)
    tokenizer = LoraTokenizer2D(rank=6, chunk=10, frame="none")
    tokens, scales = tokenizer.tokenize(weights)
    assert tokens.shape == (3 * (6 + 7), 6, 10)
    assert tokens[:, 4:].isnan().all()
    back = tokenizer.detokenize(tokens, scales, like=weights)
    for key, tensor in weights.items():
        torch.testing.assert_close(back[key], tensor, rtol=2e-6, atol=1e-6)
    with pytest.raises(CheckpointError, match="rank is too large"):
        LoraTokenizer2D(rank=3).tokenize(weights)


def test_parameters_are_taken():
    weights = {key: torch.nn.Parameter(tensor) for key, tensor in weights_of().items()}
    tokens, scales = LoraTokenizer2D().tokenize(weights)
    assert not tokens.requires_grad
    assert not scales.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.clear(), "it holds no tensors"),
        (
            lambda w: w.pop(f"{PREFIX}0.mlp.down_proj.lora_B.weight"),
            "0.mlp.down_proj.lora_A.weight: half of a pair is missing",
        ),
        (
            lambda w: w.update({"base_model.model.x.bias": torch.zeros(3)}),
            "base_model.model.x.bias: it trains biases",
        ),
        (
            lambda w: w.update({"m.lora_A.weight": torch.zeros(3), "m.lora_B.weight": torch.zeros(3)}),
            "m.lora_A.weight: not a matrix",
        ),
        (
            lambda w: w.update({"m.lora_A.weight": torch.zeros(3, 4), "m.lora_B.weight": torch.zeros(4, 2)}),
            "shape",
        ),
        (lambda w: w.update({k: v.double() for k, v in w.items()}), "dtype cannot be tokenized"),
        (lambda w: w.update({next(iter(w)): next(iter(w.values())).half()}), "wrong type"),
        (
            lambda w: next(iter(w.values())).fill_(float("nan")),
            r"lora_A.weight: non-finite weights: got 96 of 96",
        ),
        (
            lambda w: w.update({k.replace("base_model.model.", ""): v for k, v in w.items()}),
            "two adapters in one file",
        ),
    ],
)
def test_bad_weights_are_named(change, message):
    weights = weights_of()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        LoraTokenizer2D().tokenize(weights)


def test_bad_requests():
    weights = weights_of()
    tokens, _ = LoraTokenizer2D(frame="none").tokenize(weights)
    for option in ({"order": "x"}, {"frame": "x"}, {"zero_std": "x"}):
        with pytest.raises(UsageError, match="unknown value"):
            LoraTokenizer2D(**option)
    with pytest.raises(UsageError, match="need scales"):
        LoraTokenizer2D(frame="none").detokenize(tokens, like=weights)
    with pytest.raises(UsageError, match="do not fit"):
        LoraTokenizer2D().detokenize(tokens, like=weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.replace(".weight", ".foo.weight"),
        lambda key: key.replace("base_model.model.", ""),
        lambda key: key.replace("q_proj", "q.proj"),
        lambda key: key.replace("model.layers.0.self_attn.q_proj", "lm_head"),
        lambda key: key.replace("0.self_attn.q_proj", "0.embed_tokens"),
        lambda key: key.replace("mlp", "experts"),
        lambda key: key.replace("A.weight", "A.weight").replace("B.weight", "B.foo.weight"),
        lambda key: key.replace("base_model.model.model.layers", "unet"),
        lambda key: key.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"),
        lambda key: "lora_A.weight" if "0.self_attn.q_proj.lora_A" in key else key,
    ],
)
def test_keys_are_read_as_a_build_reads_them(tmp_path, change):
    weights = {change(key): tensor for key, tensor in weights_of().items()}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    try:
        pairs, refused = read_adapter(tmp_path / "adapter_model.safetensors", None, alpha=8).pairs, ""
    except CheckpointError as error:
        refused = error.what
    if refused:
        with pytest.raises(CheckpointError) as raised:
            LoraTokenizer2D().tokenize(weights)
        assert raised.value.what == refused
        return
    tokenizer = LoraTokenizer2D(frame="none")
    assert {module.name for module in tokenizer.layout(weights).modules} == pairs.keys()
    tokens, scales = tokenizer.tokenize(weights)
    assert tokenizer.detokenize(tokens, scales, like=weights).keys() == weights.keys()
