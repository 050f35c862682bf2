import pytest
import torch

from llgbm_loader.body import make_body
from llgbm_loader.frame import frame_tokens, unframe
from llgbm_pack.tokenize.decode import decode_body, join_pieces
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.tokenize.module_table import make_layout
from llgbm_shards.errors import UsageError
from support.slow_tokens import bits_of

UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def make(dtype, scale=0.02, mean=0.0, chunk=7, rank=5):
    generator = torch.Generator().manual_seed(3)
    kind = getattr(torch, dtype)
    pairs = {}
    for name, own, low, high in (("a", 4, 24, 16), ("b", 2, 30, 7), ("c", 3, 5, 70)):
        matrices = (torch.randn(own, low, generator=generator), torch.randn(high, own, generator=generator))
        pairs[name] = tuple((matrix * scale + mean).to(kind) for matrix in matrices)
    pairs["b"][1].zero_()
    pairs["c"][0].fill_(0.5)
    shapes = {name: (low.shape[0], low.shape[1], high.shape[0]) for name, (low, high) in pairs.items()}
    layout = make_layout(shapes, dtype=dtype, chunk=chunk, rank=rank)
    body, scales = torch.empty(layout.pieces_shape, dtype=kind), torch.empty(layout.num_tokens, 2)
    PieceEncoder(layout).encode(pairs, body, scales)
    return pairs, layout, make_body(body, scales), scales


def worst(wanted, got, unit):
    """Largest error, in roundings: of the difference to the mean, of the quotient and of the result."""
    error, mean = (got.double() - wanted.double()).abs(), wanted.double().mean()
    spread = wanted.double().abs().max() + mean.abs()
    return (error / (unit * spread)).max().item() if spread else error.max().item()


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("scale", [1e-5, 0.02, 1.0])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_weights_come_back(dtype, scale, mean):
    pairs, layout, body, scales = make(dtype, scale, mean)
    back = decode_body(body, scales, layout)
    assert list(back) == ["a", "b", "c"]
    for name, pair in pairs.items():
        for wanted, got in zip(pair, back[name], strict=True):
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            assert got.is_contiguous()
            assert worst(wanted, got, UNIT[dtype]) <= 2
    assert torch.equal(back["b"][1], pairs["b"][1])
    assert torch.equal(back["c"][0], pairs["c"][0])


def test_float32_within_two_millionths():
    pairs, layout, body, scales = make("float32")
    back = decode_body(body, scales, layout)
    for name, pair in pairs.items():
        for wanted, got in zip(pair, back[name], strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-8)


def test_ranks_are_told_from_padding_or_given():
    pairs, layout, body, scales = make("float32")
    shown = frame_tokens(body, scales, frame="none", zero_std="nan")
    assert shown.isnan().sum() > body.isnan().sum()
    for form in (body, shown):
        told = decode_body(form, scales, layout)
        given = decode_body(form, scales, layout, ranks={"a": 4, "b": 2, "c": 3})
        for name in pairs:
            for one, two, source in zip(told[name], given[name], pairs[name], strict=True):
                assert torch.equal(one, two)
                assert one.shape == source.shape
    assert list(decode_body(body, scales, layout, ranks={"a": 4, "b": 0})) == ["a"]
    with pytest.raises(UsageError, match="rank is out of range"):
        decode_body(body, scales, layout, ranks={"a": 6})


def test_absent_modules_are_left_out():
    pairs, layout, body, scales = make("bfloat16")
    del pairs["b"]
    PieceEncoder(layout).encode(pairs, body, scales)
    body = make_body(body, scales)
    assert list(decode_body(body, scales, layout)) == ["a", "c"]


def test_tokens_without_scales():
    pairs, layout, body, scales = make("float32")
    inner, decoded = unframe(frame_tokens(body, scales))
    back = decode_body(inner, decoded, layout, ranks={"a": 4, "b": 2, "c": 3})
    for name, pair in pairs.items():
        torch.testing.assert_close(back[name][0], pair[0], rtol=1e-4, atol=1e-6)


def test_other_dtype_and_wrong_shapes():
    _, layout, body, scales = make("bfloat16")
    back = decode_body(body, scales, layout, dtype=torch.float32)
    assert {tensor.dtype for pair in back.values() for tensor in pair} == {torch.float32}
    with pytest.raises(UsageError, match="do not fit the layout"):
        decode_body(body[1:], scales, layout)
    with pytest.raises(UsageError, match="do not fit the layout"):
        decode_body(body, scales[1:], layout)


@pytest.mark.parametrize("dtype", UNIT)
def test_pieces_joined_are_the_weights_bit_for_bit(dtype):
    pairs, layout, _, scales = make(dtype)
    pairs["b"][1][0, 0] = -0.0
    pieces = torch.empty(layout.pieces_shape, dtype=getattr(torch, dtype))
    PieceEncoder(layout).encode(pairs, pieces, scales)
    back = join_pieces(pieces, layout, ranks={"a": 4, "b": 2, "c": 3})
    for name, pair in pairs.items():
        for wanted, got in zip(pair, back[name], strict=True):
            assert torch.equal(bits_of(got, dtype), bits_of(wanted, dtype))
            assert got.is_contiguous()
    del pairs["a"]
    PieceEncoder(layout).encode(pairs, pieces, scales)
    assert list(join_pieces(pieces, layout, ranks={"b": 2, "c": 3})) == ["b", "c"]
