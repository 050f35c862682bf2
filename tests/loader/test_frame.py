import math

import pytest
import torch

from llgbm_loader.frame import frame_tokens, unframe
from llgbm_shards.errors import UsageError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def sample(dtype=torch.float32, seed=0):
    """Pieces: plain, constant zero, constant 3, absent."""
    generator = torch.Generator().manual_seed(seed)
    body = torch.randn(4, 3, 5, generator=generator).to(dtype)
    body[1:3] = 0
    body[3] = math.nan
    scales = torch.tensor([[0.25, 0.5], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    return body, scales


def by_cell(body, mean, std):
    """The frame of one token, cell by cell."""
    rows, columns = body.shape
    code = (mean * 8, torch.log(std * 0.9 + 0.1) + 1.6)
    token = torch.empty(rows + 2, columns + 2, dtype=body.dtype)
    for i in range(rows + 2):
        for j in range(columns + 2):
            if j >= columns:
                token[i, j] = code[j - columns]
            else:
                token[i, j] = code[j % 2] if i >= rows else body[i, j]
    return token


@pytest.mark.parametrize("chunk", [4, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dnd_frame_cell_by_cell(dtype, chunk):
    body, scales = sample(dtype)
    body = body[..., :chunk]
    tokens = frame_tokens(body, scales)
    assert tokens.shape == (4, 5, chunk + 2)
    assert tokens.dtype == dtype
    for token, piece, (mean, std) in zip(tokens[:3], body[:3], scales.to(dtype), strict=False):
        shown = piece if std > 0 else torch.full_like(piece, math.nan)
        torch.testing.assert_close(token, by_cell(shown, mean, std), rtol=0, atol=0, equal_nan=True)
    assert tokens[3].isnan().all()


@pytest.mark.parametrize("frame", ["dnd", "fp32", "none"])
@pytest.mark.parametrize("zero_std", ["nan", "zeros"])
def test_zero_std_and_padding(frame, zero_std):
    body, scales = sample()
    tokens = frame_tokens(body, scales, frame=frame, zero_std=zero_std)
    inner = tokens[:, :3, :5]
    assert torch.equal(inner[0], body[0])
    assert tokens[3].isnan().all()
    for number in (1, 2):
        if zero_std == "nan":
            assert inner[number].isnan().all()
        else:
            assert not inner[number].any()
    if frame != "none":
        assert tokens[2, 0, -2] == 24
        assert tokens[1, 0, -1].item() == pytest.approx(math.log(0.1) + 1.6, abs=1e-6)
    assert torch.equal(body[1:3], torch.zeros(2, 3, 5)), "the caller's body is not touched"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_batched_equals_single(dtype):
    samples = [sample(dtype, seed) for seed in range(3)]
    bodies, scales = (torch.stack(parts) for parts in zip(*samples, strict=True))
    for frame in ("dnd", "none"):
        batched = frame_tokens(bodies, scales, frame=frame, dtype=torch.float32)
        single = torch.stack([frame_tokens(*one, frame=frame, dtype=torch.float32) for one in samples])
        assert torch.equal(batched.view(torch.int32), single.view(torch.int32))


def test_codes_are_computed_in_the_bodys_dtype_or_in_float32():
    body, scales = sample(torch.bfloat16)
    scales[0] = torch.tensor([0.25, 0.001]).bfloat16().float()
    exact = math.log(scales[0, 1].item() * 0.9 + 0.1) + 1.6
    dnd = frame_tokens(body, scales, dtype=torch.float32)[0, 0, -1].item()
    full = frame_tokens(body, scales, frame="fp32", dtype=torch.float32)[0, 0, -1].item()
    assert full == pytest.approx(exact, abs=1e-6)
    assert abs(dnd - exact) > 1e-4
    assert dnd == torch.tensor(dnd).bfloat16().item()


@pytest.mark.parametrize("frame", ["dnd", "fp32", "none"])
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_never_rounded(frame, stored, dtype):
    """float32 holds all of them; 16 bits hold those computed in the same 16 bits; a bare body has none."""
    body, scales = sample(stored)
    computed = stored if frame == "dnd" else torch.float32
    if frame == "none" or dtype in (computed, torch.float32):
        assert frame_tokens(body, scales, frame=frame, dtype=dtype).dtype == dtype
        return
    name = str(computed).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"option dtype: {name} scale codes would be rounded: expected"):
        frame_tokens(body, scales, frame=frame, dtype=dtype)


def test_out_is_written_and_may_be_the_body():
    body, scales = sample()
    out = torch.zeros(4, 5, 7)
    assert frame_tokens(body, scales, out=out) is out
    assert torch.equal(out.view(torch.int32), frame_tokens(body, scales).view(torch.int32))
    assert frame_tokens(body, scales, frame="none", out=body) is body
    assert body[1:3].isnan().all()
    with pytest.raises(UsageError, match="out does not fit"):
        frame_tokens(body, scales, out=torch.zeros(4, 5, 6))
    with pytest.raises(UsageError, match="out does not fit"):
        frame_tokens(body, scales, frame="none", out=body.bfloat16())


def test_no_copy_where_nothing_changes():
    body, scales = sample()
    assert frame_tokens(body, scales, frame="none", zero_std="zeros") is body
    assert frame_tokens(body[:1], scales[:1], frame="none").data_ptr() == body.data_ptr()


@pytest.mark.parametrize("option", [{"frame": "x"}, {"zero_std": "x"}])
def test_unknown_options(option):
    with pytest.raises(UsageError, match="unknown value"):
        frame_tokens(*sample(), **option)


def test_shapes_that_do_not_fit():
    body, scales = sample()
    with pytest.raises(UsageError, match="do not fit"):
        frame_tokens(body, scales[:2])
    with pytest.raises(UsageError, match="no frame"):
        unframe(torch.zeros(2, 2, 2))


@pytest.mark.parametrize("chunk", [4, 5])
def test_unframe_inverts_the_frame(chunk):
    generator = torch.Generator().manual_seed(0)
    body = torch.randn(2, 50, 3, chunk, generator=generator)
    scales = torch.rand(2, 50, 2, generator=generator) * 0.5 + 0.001
    scales[0, 0, 1] = 0
    inner, decoded = unframe(frame_tokens(body, scales, zero_std="zeros"))
    assert torch.equal(inner, body)
    torch.testing.assert_close(decoded, scales, rtol=1e-5, atol=1e-6)
    assert (decoded[..., 1] >= 0).all()


def test_unframe_averages_the_copies():
    body, scales = sample()
    tokens = frame_tokens(body, scales)
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)) * 0.01
    clean, noisy = unframe(tokens)[1], unframe(tokens + noise)[1]
    assert not noisy[3].any(), "a padded token has no scales"
    assert (noisy[0, 0] - clean[0, 0]).abs() < 0.002
    tokens[0, 0, -2] += 8
    # Seven copies of the mean's code: 3 + 2 in the column, 3 even places in each of the two rows.
    assert unframe(tokens)[1][0, 0].item() == pytest.approx(0.25 + 1 / 11, abs=1e-6)
