import pytest

from llgbm_pack.sources.peft_keys import peft_key
from llgbm_pack.tokenize.module_table import layer_number, make_layout
from llgbm_shards.errors import CheckpointError, UsageError

BASES = {
    # layers, rank, hidden, key/value width, feed-forward width, tokens
    "Qwen2.5-0.5B": (24, 8, 896, 128, 4864, 128, 4296),
    "Qwen2.5-1.5B": (28, 16, 1536, 256, 8960, 256, 4508),
    "Qwen2.5-VL-3B": (36, 16, 2048, 256, 11008, 256, 7308),
    "Qwen2.5-7B": (28, 16, 3584, 512, 18944, 512, 4928),
}


def decoder_shapes(layers, rank, hidden, narrow, wide):
    shapes = {}
    for layer in range(layers):
        base = f"model.layers.{layer}"
        for name, out in (("q_proj", hidden), ("k_proj", narrow), ("v_proj", narrow), ("o_proj", hidden)):
            shapes[f"{base}.self_attn.{name}"] = (rank, hidden, out)
        for name, (low, high) in {
            "gate": (hidden, wide),
            "up": (hidden, wide),
            "down": (wide, hidden),
        }.items():
            shapes[f"{base}.mlp.{name}_proj"] = (rank, low, high)
    return shapes


@pytest.mark.parametrize("base", BASES)
def test_token_counts_of_known_bases(base):
    layers, rank, hidden, narrow, wide, chunk, tokens = BASES[base]
    layout = make_layout(decoder_shapes(layers, rank, hidden, narrow, wide), dtype="bfloat16")
    assert (layout.num_tokens, layout.rank, layout.chunk) == (tokens, rank, chunk)
    counts = {m.name.rsplit(".", 1)[-1]: (m.tokens_a, m.tokens_b) for m in layout.modules}
    small, large = hidden // chunk, wide // chunk
    assert counts["q_proj"] == counts["o_proj"] == (small, small)
    assert counts["k_proj"] == counts["v_proj"] == (small, 1)
    assert counts["gate_proj"] == counts["up_proj"] == (small, large)
    assert counts["down_proj"] == (large, small)


def test_sorted_order_is_that_of_the_keys():
    shapes = decoder_shapes(12, 8, 64, 16, 128)
    layout = make_layout(shapes, dtype="float32")
    keys = sorted(peft_key(name, "A") for name in shapes)
    assert [peft_key(m.name, "A") for m in layout.modules] == keys
    assert [m.layer for m in layout.modules][7] == 1
    assert [m.layer for m in layout.modules][14] == 10


def test_dnd_order():
    shapes = decoder_shapes(11, 8, 64, 16, 128) | {
        "lm_head": (8, 64, 128),
        "model.layers.2.self_attn.extra": (8, 64, 64),
        "model.layers.2.mlp.another": (8, 64, 64),
    }
    layout = make_layout(shapes, dtype="float32", token_order="dnd")
    names = [m.name for m in layout.modules]
    second = [name.rsplit(".", 1)[-1] for name in names if ".layers.2." in name]
    known = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    assert second == [*known, "another", "extra"]
    layers = [m.layer for m in layout.modules[:-1]]
    assert layers == sorted(layers)
    assert names[-1] == "lm_head"


def test_tokens_of_widths_that_do_not_divide():
    layout = make_layout({"x": (4, 10, 7)}, dtype="float32", chunk=4)
    assert [(m.tokens_a, m.tokens_b) for m in layout.modules] == [(3, 2)]
    assert make_layout({"x": (4, 10, 7)}, dtype="float32").chunk == 1
    assert make_layout({"x": (4, 12, 18)}, dtype="float32", rank=9).pieces_shape == (5, 9, 6)


@pytest.mark.parametrize(("name", "layer"), [("a.12.b.3", 12), ("lm_head", -1), ("h2o.x", -1), ("0", 0)])
def test_layer_number(name, layer):
    assert layer_number(name) == layer


def test_what_cannot_be_laid_out():
    with pytest.raises(CheckpointError, match="no LoRA modules"):
        make_layout({}, dtype="float32")
    with pytest.raises(CheckpointError, match="x: rank is too large: expected at most 4, got 8"):
        make_layout({"x": (8, 4, 4)}, dtype="float32", rank=4)
    with pytest.raises(CheckpointError, match="empty"):
        make_layout({"x": (8, 0, 4)}, dtype="float32")
    with pytest.raises(UsageError, match="chunk"):
        make_layout({"x": (8, 4, 4)}, dtype="float32", chunk=0)
    with pytest.raises(UsageError, match="order"):
        make_layout({"x": (8, 4, 4)}, dtype="float32", token_order="random")
