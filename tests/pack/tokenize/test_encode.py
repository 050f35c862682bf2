import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_loader.body import make_body
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.tokenize.module_table import make_layout
from llgbm_pack.tokenize.moments import Counts, decide, round_to
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.layout import PADDING_BITS
from support.slow_tokens import (
    FORMATS,
    bits_of,
    moments,
    normalise,
    plain_nan,
    round_float,
    slow_body,
    slow_pieces,
)

DTYPES = ["bfloat16", "float16", "float32"]


def layout_of(pairs, **options):
    shapes = {name: (low.shape[0], low.shape[1], high.shape[0]) for name, (low, high) in pairs.items()}
    dtype = str(next(iter(pairs.values()))[0].dtype).removeprefix("torch.")
    return make_layout(shapes, dtype=dtype, **options)


def encode(pairs, layout):
    # Neither the memory's former content nor its NaN patterns may show.
    pieces = torch.full(layout.pieces_shape, 7.0, dtype=getattr(torch, layout.dtype))
    scales = torch.full((layout.num_tokens, 2), 7.0)
    PieceEncoder(layout).encode(pairs, pieces, scales)
    return pieces, scales


def encode_pieces(pairs, layout):
    pieces, scales = encode(pairs, layout)
    return plain_nan(make_body(pieces, scales)), scales


def many_pieces(kind, count, n, dtype):
    """(count, n) float64 values of the dtype."""
    random = np.random.default_rng(n)
    noise = random.standard_normal((count, n))
    std = 10.0 ** random.uniform(-5, 0, (count, 1))
    if kind == "plain":
        values = noise * std
    elif kind == "skewed":
        values = noise * std + std * 10.0 ** random.uniform(-3, 3, (count, 1))
    elif kind == "constant":
        values = np.where(random.random((count, 1)) < 0.5, 0.0, std) * np.ones_like(noise)
        values[::3, 0] *= 1.5
    elif kind == "ties":
        # Small whole numbers: sums land on half units of the last place, differences on midpoints.
        unit = 2.0 ** random.integers(-12, 0, (count, 1))
        values = random.integers(-600, 600, (count, n)) * unit
    elif kind == "tiny":
        values = random.integers(-3, 4, (count, n)) * 2.0 ** FORMATS[dtype][1]
        values[::2] *= random.random((len(values[::2]), n)) < 0.1
    else:
        values = noise * 10.0 ** random.uniform(-5, 0, (count, n))
    return round_float(values, dtype)


@pytest.mark.parametrize("kind", ["plain", "skewed", "constant", "ties", "tiny", "wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_equal_the_plain_formulas(dtype, kind):
    """18,400 pieces a case: 331,200 in all, 220,800 of them of 16 bits."""
    for rows, chunk, count in ((2, 9, 18000), (16, 64, 360), (16, 256, 40)):
        values = many_pieces(kind, count, rows * chunk, dtype)
        half = count // 2
        pieces = torch.from_numpy(values).to(getattr(torch, dtype)).view(count, rows, chunk)
        low = pieces[:half].transpose(0, 1).reshape(rows, half * chunk)
        high = pieces[half:].transpose(1, 2).reshape(half * chunk, rows)
        layout = layout_of({"m": (low, high)}, chunk=chunk)
        body, scales = encode_pieces({"m": (low, high)}, layout)
        slow, slow_scales = normalise(values, dtype)
        assert torch.equal(bits_of(scales, "float32"), bits_of(slow_scales, "float32"))
        assert torch.equal(bits_of(body, dtype), bits_of(slow, dtype).view(body.shape))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rank=st.integers(1, 6),
    chunk=st.integers(1, 11),
    extra_rank=st.integers(0, 3),
    widths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_loop_over_pieces(dtype, rank, chunk, extra_rank, widths, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for number, (low, high) in enumerate(widths):
        own = max(1, rank - number)
        matrices = (torch.randn(own, low, generator=generator), torch.randn(high, own, generator=generator))
        pairs[f"m{number}"] = tuple((matrix * scale).to(getattr(torch, dtype)) for matrix in matrices)
    layout = layout_of(pairs, chunk=chunk, rank=rank + extra_rank)
    pieces, scales = encode(pairs, layout)
    body, names = plain_nan(make_body(pieces, scales)), [m.name for m in layout.modules]
    slow, slow_scales = slow_body(pairs, names, layout.rank, chunk, dtype)
    stored = plain_nan(slow_pieces(pairs, names, layout.rank, chunk, dtype))
    assert torch.equal(bits_of(pieces, dtype), bits_of(stored, dtype))
    assert torch.equal(bits_of(scales, "float32"), bits_of(slow_scales, "float32"))
    assert torch.equal(bits_of(body, dtype), bits_of(slow, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_absent_module_is_padding(dtype):
    kind = getattr(torch, dtype)
    pairs = {name: (torch.randn(4, 24).to(kind), torch.randn(16, 4).to(kind)) for name in "abc"}
    layout = layout_of(pairs)
    whole, whole_scales = encode(pairs, layout)
    encoder = PieceEncoder(layout)
    pieces, scales = torch.zeros_like(whole), torch.zeros_like(whole_scales)
    encoder.encode(pairs, pieces, scales)
    pairs.pop("b")
    encoder.encode(pairs, pieces, scales)
    absent = slice(5, 10)
    assert set(bits_of(pieces[absent], dtype).unique().tolist()) == {PADDING_BITS[dtype]}
    assert not scales[absent].any()
    keep = [*range(5), *range(10, 15)]
    assert torch.equal(pieces[keep], whole[keep])
    assert torch.equal(scales[keep], whole_scales[keep])


def test_views_are_reused_only_for_the_same_memory():
    pairs = {name: (torch.randn(4, 24), torch.randn(16, 4)) for name in "ab"}
    layout = layout_of(pairs)
    encoder = PieceEncoder(layout)
    body, scales = torch.zeros(layout.pieces_shape), torch.zeros(layout.num_tokens, 2)

    def check(current):
        encoder.encode(current, body, scales)
        wanted = encode(current, layout)
        assert torch.equal(body, wanted[0])
        assert torch.equal(scales, wanted[1])

    check(pairs)
    pairs["a"][0].normal_()
    # New tensor objects of the same memory, as a reader with one buffer makes them.
    check({name: (low.view(4, 24), high.view(16, 4)) for name, (low, high) in pairs.items()})
    check({name: (low.clone(), high.clone()) for name, (low, high) in pairs.items()})
    # Same address and shape, other strides.
    square = torch.randn(4, 4)
    other = make_layout({"a": (4, 4, 4)}, dtype="float32")
    encoder = PieceEncoder(other)
    body, scales = torch.zeros(other.pieces_shape), torch.zeros(other.num_tokens, 2)
    for matrix in (square, square.T):
        encoder.encode({"a": (matrix, matrix)}, body, scales)
        assert torch.equal(body, encode({"a": (matrix.clone(), matrix.clone())}, other)[0])


def test_the_order_of_sums_does_not_show():
    """Threads change the order of torch's sums; the result must not change."""
    pairs = {"m": (torch.randn(16, 40 * 256).bfloat16(), (torch.randn(60 * 256, 16) + 3).bfloat16())}
    layout = layout_of(pairs, chunk=256)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(encode(pairs, layout))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_off_by_their_bound_never_decide_wrongly(dtype):
    values = np.concatenate([many_pieces(kind, 4000, 24, dtype) for kind in ("plain", "ties", "skewed")])
    sums, squares = values.sum(1), (values * values).sum(1)
    size = np.sqrt(24 * squares)
    mean, std = moments(values, dtype)
    for sign in (-1, 1):
        moved = sums + sign * 24 * 2.0**-53 * size
        grown = squares * (1 - sign * 24 * 2.0**-53)
        got_mean, got_std, still_open = decide(moved, grown, Counts.of([24] * len(values)), dtype)
        assert 0 < still_open.sum() < len(values) / 2
        np.testing.assert_array_equal(got_mean[~still_open], mean[~still_open])
        np.testing.assert_array_equal(got_std[~still_open], std[~still_open])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_single(dtype):
    random = np.random.default_rng(1)
    values = random.standard_normal(200_000) * 10.0 ** random.uniform(-9, 4, 200_000)
    middles = round_float(values, dtype)
    unit = np.abs(middles - round_float(middles * (1 + 2.0 ** -FORMATS[dtype][0]), dtype))
    near = [middles + unit * (0.5 + shift) for shift in (-1e-12, 0.0, 1e-12)]
    for tested in (values, *near, -near[0], -near[2]):
        np.testing.assert_array_equal(round_to(tested, dtype), round_float(tested, dtype))
    assert np.isinf(round_to(np.array([1e39]), dtype)).all()


@pytest.mark.parametrize(("value", "side"), [(float("nan"), 0), (float("inf"), 1), (float("-inf"), 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_refused(dtype, value, side):
    kind = getattr(torch, dtype)
    pairs = {name: (torch.randn(4, 24).to(kind), torch.randn(16, 4).to(kind)) for name in "ab"}
    layout = layout_of(pairs)
    pairs["b"][side].view(-1)[5:8] = value
    with pytest.raises(CheckpointError, match=rf"^b.lora_{'AB'[side]}.weight: non-finite weights: got 3 of"):
        encode(pairs, layout)


@pytest.mark.parametrize(
    ("dtype", "large"), [("float16", 60000.0), ("bfloat16", 3.2e38), ("float32", 3.2e38)]
)
def test_spread_over_the_dtype_is_refused(dtype, large):
    low = torch.ones(2, 8, dtype=getattr(torch, dtype))
    high = torch.ones(8, 2, dtype=low.dtype)
    layout = layout_of({"m": (low, high)})
    high[3:] = large
    body, _ = encode_pieces({"m": (low, high)}, layout)
    assert torch.isfinite(body).all()
    high[0] = -large
    with pytest.raises(CheckpointError, match=r"^m\.lora_B\.weight, piece 0: weights spread too far"):
        encode({"m": (low, high)}, layout)


def test_what_does_not_fit_is_refused():
    low, high = torch.randn(4, 24), torch.randn(16, 4)
    layout = layout_of({"m": (low, high)})
    for pair, message in (
        ((low.double(), high), "lora_A.weight: tensor has the wrong type"),
        ((low, high.T), "lora_B.weight: tensor has the wrong shape"),
        ((low[:, :8], high), "lora_A.weight: tensor has the wrong shape"),
        ((torch.randn(5, 24), torch.randn(16, 5)), "rank is too large"),
    ):
        with pytest.raises(CheckpointError, match=message):
            encode({"m": pair}, layout)
    with pytest.raises(CheckpointError, match="n: module is not in the layout"):
        encode({"n": (low, high)}, layout)
    encoder = PieceEncoder(layout)
    with pytest.raises(UsageError, match="pieces"):
        encoder.encode({"m": (low, high)}, torch.zeros(1), torch.zeros(5, 2))
    with pytest.raises(UsageError, match="scales"):
        encoder.encode({"m": (low, high)}, torch.zeros(layout.pieces_shape), torch.zeros(5, 2).double())
