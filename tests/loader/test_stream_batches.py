"""What batches hold: exactly the samples that were written, in every frame, dtype, form and field choice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blake3 import blake3

from llgbm_loader import StreamingLoader, frame_tokens
from llgbm_loader.conditions import draw_texts
from llgbm_loader.order import epoch_order
from llgbm_shards.errors import UsageError
from llgbm_shards.texts import ConditionSpec
from support.conditions import rebuild
from support.slow_tokens import round_float
from support.synthetic import TEXTS_SPEC, small_layout, write_set

_TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _body(sample, layout):
    """By the plain formulas: each step in float64, rounded to the dtype."""
    pieces = _pieces(sample, layout).double().numpy()
    mean, std = sample.scales.astype(np.float64).T[..., None, None]
    centred = round_float(pieces - mean, layout.dtype)
    body = round_float(centred / np.where(std == 0, 1, std), layout.dtype)
    body[(std == 0) & ~np.isnan(body)] = 0.0
    return torch.from_numpy(body).to(_TORCH[layout.dtype])


def _pieces(sample, layout):
    signed = sample.pieces.view(f"<i{layout.itemsize}").copy()
    return torch.from_numpy(signed).view(_TORCH[layout.dtype])


def _bits(tensor):
    kinds = {2: torch.int16, 4: torch.int32}
    return tensor.contiguous().view(kinds[tensor.itemsize])


def _same(one, other):
    """Equal to the bit; NaN where the other is NaN (their bits differ between code paths)."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(torch.nan_to_num(one, nan=12345.0), torch.nan_to_num(other, nan=12345.0))
        and torch.equal(one.isnan(), other.isnan())
    )


@pytest.mark.parametrize("zero_std", ["nan", "zeros"])
@pytest.mark.parametrize(
    ("stored", "frame", "dtype"),
    [
        ("bfloat16", "dnd", torch.float32),
        ("bfloat16", "dnd", None),
        ("bfloat16", "fp32", torch.float32),
        ("bfloat16", "none", None),
        ("bfloat16", "none", torch.float32),
        ("bfloat16", "none", torch.float16),
        ("float16", "dnd", None),
        ("float16", "none", None),
        ("float32", "dnd", torch.float32),
        ("float32", "dnd", None),
        ("float32", "none", torch.bfloat16),
    ],
)
def test_tokens_equal_the_frame_of_the_written_body(tmp_path, monkeypatch, stored, frame, dtype, zero_std):
    # A small block, so that a body is more than one.
    monkeypatch.setattr("llgbm_loader.reader.BLOCK_BYTES", 64)
    made = write_set(tmp_path / "set", 7, layout=small_layout(dtype=stored, tokens=5))
    written, seen = made.by_key(), set()
    loader = StreamingLoader(
        made.path, batch_size=3, frame=frame, dtype=dtype, zero_std=zero_std, remainder="pad"
    )
    for batch in loader:
        for row, key in enumerate(batch["keys"]):
            if not batch["valid"][row]:
                assert not batch["tokens"][row].count_nonzero()
                continue
            sample = written[key]
            scales = torch.from_numpy(sample.scales)
            want = frame_tokens(
                _body(sample, made.layout).clone(), scales, frame=frame, zero_std=zero_std, dtype=dtype
            )
            assert _same(batch["tokens"][row], want)
            assert torch.equal(batch["scales"][row], scales)
            seen.add(key)
    assert seen == set(written)


def test_pieces_are_the_stored_bits(tmp_path):
    made = write_set(tmp_path / "set", 6)
    written = made.by_key()
    for batch in StreamingLoader(made.path, batch_size=2, fields=["weights"], dtype=None):
        for row, key in enumerate(batch["keys"]):
            assert np.array_equal(_bits(batch["weights"][row]).numpy().view("<u2"), written[key].pieces)


def test_zero_std_pieces_show_the_padding_pattern(tmp_path):
    made = write_set(tmp_path / "set", 2)
    for batch in StreamingLoader(made.path, batch_size=2, frame="none", dtype=None):
        bits = _bits(batch["tokens"]).numpy().view("<u2")
        constant = batch["scales"][..., 1].numpy() == 0
        assert constant.any()
        assert (bits[constant] == 0x7FC0).all()
        assert not (bits[~constant] == 0x7FC0).any()


def test_names_shapes_and_dtypes(tmp_path):
    made = write_set(tmp_path / "set", 6)
    batch = next(iter(StreamingLoader(made.path, batch_size=4, max_text_length=16)))
    shapes = {name: (tuple(v.shape), v.dtype) for name, v in batch.items() if name != "keys"}
    count, height, width = made.layout.tokens_shape
    assert shapes == {
        "tokens": ((4, count, height, width), torch.float32),
        "scales": ((4, count, 2), torch.float32),
        "condition_ids": ((4, 16), torch.int64),
        "attention_mask": ((4, 16), torch.int64),
        "delta": ((4, 6), torch.float32),
        "has_delta": ((4,), torch.bool),
        "valid": ((4,), torch.bool),
    }
    assert all(isinstance(key, str) for key in batch["keys"])


def test_deltas_and_their_mask(tmp_path):
    made = write_set(tmp_path / "set", 8)
    written = made.by_key()
    for batch in StreamingLoader(made.path, batch_size=4):
        for row, key in enumerate(batch["keys"]):
            assert batch["has_delta"][row] == written[key].has_delta
            assert np.array_equal(batch["delta"][row].numpy(), written[key].delta)


@pytest.mark.parametrize("fields", [["delta"], ["scales"], ["tokens"], ["condition", "delta"], ["condition"]])
def test_only_named_fields_come_and_only_their_bytes_are_read(tmp_path, fields):
    made = write_set(tmp_path / "set", 8, layout=small_layout(rank=16, chunk=64))
    loader = StreamingLoader(made.path, batch_size=4, fields=fields)
    names = {"tokens": ["tokens"], "scales": ["scales"], "condition": ["condition_ids", "attention_mask"]}
    names["delta"] = ["delta", "has_delta"]
    want = {name for field in fields for name in names[field]} | {"valid", "keys"}
    for batch in loader:
        assert set(batch) == want
    body = 8 * made.layout.pieces_bytes
    assert (loader.stats().bytes_read > body) == ("tokens" in fields)


def test_a_delta_only_epoch_of_a_large_set_reads_under_a_thousandth(tmp_path):
    layout = small_layout(rank=16, chunk=256, modules=8, tokens=64)
    made = write_set(tmp_path / "set", 4, layout=layout, delta_width=256)
    loader = StreamingLoader(made.path, batch_size=2, fields=["delta"])
    assert sum(1 for _ in loader) == 2
    size = sum(path.stat().st_size for path in made.path.glob("*.tar"))
    assert loader.stats().bytes_read < size / 1000


def test_an_absent_field_is_named_with_what_there_is(tmp_path):
    made = write_set(tmp_path / "set", 4, delta_width=0, texts=False)
    with pytest.raises(UsageError, match=r"no delta.*tokens, weights, scales"):
        StreamingLoader(made.path, fields=["tokens", "delta"])
    batch = next(iter(StreamingLoader(made.path, batch_size=2)))
    assert set(batch) == {"tokens", "scales", "valid", "keys"}


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float64},
        {"frame": "dnd2"},
        {"verify": "sometimes"},
        {"batch_size": 0},
        {"batch_size": True},
        {"readers": 0},
        {"prefetch_batches": 0},
        {"mix": 1.5},
        {"mix": "a"},
        {"mix": None},
        {"mix": True},
        {"world_size": 2, "rank": "0"},
        {"world_size": 2, "rank": 0.0},
        {"world_size": 2, "rank": True},
        {"world_size": 2, "rank": -1},
        {"rank": 0, "world_size": 1.5},
        {"rank": 0, "world_size": 0},
        {"num_texts": 0},
        {"padding": "none"},
        {"shuffle": 1},
        {"remainder": "wrap"},
        {"on_bad_sample": "ignore"},
        {"fields": ["pieces"]},
        {"view": "tensors"},
        {"fields": []},
        {"fields": 5},
        {"fields": "tokens"},
        {"fields": [["tokens"]]},
        {"form": "question"},
        {"max_text_length": 2},
        {"seed": "0"},
        {"device": "cuda:99"},
    ],
)
def test_impossible_options_are_refused(tmp_path, options):
    """The last one of each is what is refused, by name."""
    made = write_set(tmp_path / "set", 4)
    with pytest.raises(UsageError, match=next(reversed(options))):
        StreamingLoader(made.path, **options)


def test_numbers_of_numpy_are_numbers(tmp_path):
    made = write_set(tmp_path / "set", 8)
    plain = {"form": "mix"}
    whole = {"batch_size": 2, "rank": 1, "world_size": 2, "seed": 3, "num_texts": 2, "readers": 1}
    one = StreamingLoader(made.path, **plain, **whole, mix=0.5)
    other = StreamingLoader(
        made.path, **plain, mix=np.float32(0.5), **{name: np.int64(value) for name, value in whole.items()}
    )
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    other.set_epoch(np.int64(0))
    for batch, same in zip(other, one, strict=True):
        assert batch["keys"] == same["keys"]
        assert torch.equal(batch["condition_ids"], same["condition_ids"])


def test_an_epoch_without_a_batch_is_refused(tmp_path):
    made = write_set(tmp_path / "set", 7)
    options = {"batch_size": 4, "rank": 0, "world_size": 2}
    with pytest.raises(UsageError, match=r'7 samples, got batch_size 4 x world_size 2.*remainder="pad"'):
        StreamingLoader(made.path, **options)
    assert len(StreamingLoader(made.path, **options, remainder="pad")) == 1
    assert len(StreamingLoader(made.path, **{**options, "world_size": 1})) == 1


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        ("float32", {"dtype": torch.bfloat16}),
        ("float16", {"dtype": torch.bfloat16}),
        ("bfloat16", {"dtype": torch.float16}),
        ("bfloat16", {"dtype": torch.bfloat16, "frame": "fp32"}),
        ("bfloat16", {"dtype": None, "frame": "fp32"}),
    ],
)
def test_scale_codes_that_the_batch_would_round_are_refused(tmp_path, stored, options):
    made = write_set(tmp_path / "set", 4, layout=small_layout(dtype=stored))
    with pytest.raises(UsageError, match="scale codes would be rounded"):
        StreamingLoader(made.path, **options)
    StreamingLoader(made.path, dtype=torch.bfloat16, frame="none", batch_size=4)


@pytest.mark.parametrize("form", ["prompt", "answer", "prompt_answer"])
def test_the_first_text_is_the_condition(tmp_path, form):
    made = write_set(tmp_path / "set", 6)
    spec, written = ConditionSpec.from_json(TEXTS_SPEC), made.by_key()
    for batch in StreamingLoader(made.path, batch_size=2, form=form, max_text_length=9):
        for row, key in enumerate(batch["keys"]):
            ids, offsets = written[key].texts[form]
            want = rebuild(ids[: offsets[1]], spec, 9)
            assert np.array_equal(batch["condition_ids"][row], want[0])
            assert np.array_equal(batch["attention_mask"][row], want[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_longest_cuts_to_the_batch(tmp_path, side):
    made = write_set(tmp_path / "set", 6, spec={"padding_side": side})
    whole = StreamingLoader(made.path, batch_size=3, num_texts=2, max_text_length=64)
    cut = StreamingLoader(made.path, batch_size=3, num_texts=2, max_text_length=64, padding="longest")
    for one, other in zip(whole, cut, strict=True):
        longest = int(one["attention_mask"].sum(-1).max())
        part = slice(64 - longest, 64) if side == "left" else slice(0, longest)
        assert other["condition_ids"].shape == (3, 2, longest)
        assert torch.equal(one["condition_ids"][..., part], other["condition_ids"])
        assert torch.equal(one["attention_mask"][..., part], other["attention_mask"])
        assert other["condition_ids"].is_contiguous()


def test_k_texts_are_drawn_without_replacement_and_anew_each_epoch(tmp_path):
    made = write_set(tmp_path / "set", 6, text_counts=[5])
    spec, written = ConditionSpec.from_json(TEXTS_SPEC), made.by_key()
    loader, draws = StreamingLoader(made.path, batch_size=6, num_texts=3, seed=4, max_text_length=32), []
    for epoch in range(3):
        (batch,) = list(loader)
        for row, key in enumerate(batch["keys"]):
            ids, offsets = written[key].texts["prompt"]
            numbers = draw_texts(4, epoch, key, 5, 3)
            assert len(set(numbers)) == 3
            for place, number in enumerate(numbers):
                want, _ = rebuild(ids[offsets[number] : offsets[number + 1]], spec, 32)
                assert np.array_equal(batch["condition_ids"][row, place], want)
        draws.append([draw_texts(4, epoch, key, 5, 3) for key in sorted(batch["keys"])])
    assert draws[0] != draws[1] != draws[2]


def test_fewer_texts_than_asked_repeat_in_rounds():
    for key in ("a", "b", "c", "d"):
        numbers = draw_texts(0, 0, key, 3, 8)
        assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]
        assert len(set(numbers[6:])) == 2
    assert draw_texts(0, 0, "a", 1, 4) == [0, 0, 0, 0]


def test_draws_are_uniform():
    counts = np.bincount([draw_texts(0, 0, f"key{n}", 5, 1)[0] for n in range(5000)], minlength=5)
    assert abs(counts - 1000).max() < 6 * np.sqrt(800)


def test_mix_takes_the_long_form_with_its_probability(tmp_path):
    made = write_set(tmp_path / "set", 400, shard_samples=400, text_counts=[1], delta_width=0)
    written, spec = made.by_key(), ConditionSpec.from_json(TEXTS_SPEC)
    loader = StreamingLoader(made.path, batch_size=400, fields=["condition"], form="mix", mix=0.2)
    chosen = []
    for _ in range(2):
        (batch,) = list(loader)
        long = {}
        for row, key in enumerate(batch["keys"]):
            both = [
                rebuild(written[key].texts[form][0], spec, 512)[0] for form in ("prompt", "prompt_answer")
            ]
            got = batch["condition_ids"][row].numpy()
            assert any(np.array_equal(got, want) for want in both)
            long[key] = np.array_equal(got, both[1])
        chosen.append(long)
        assert 40 <= sum(long.values()) <= 130
    assert chosen[0] != chosen[1]


def _long(seed, epoch, key, count, mix):
    """Whether each drawn text is prompt_answer, by the documented formula."""
    data = blake3(f"llgbm-condition\0{seed}\0{epoch}\0form\0{key}".encode()).digest(8 * count)
    return (np.frombuffer(data, "<u8") < mix * 2.0**64).tolist()


def test_mix_draws_a_form_for_each_text(tmp_path):
    made = write_set(tmp_path / "set", 60, text_counts=[3, 40], delta_width=0)
    written, spec = made.by_key(), ConditionSpec.from_json(TEXTS_SPEC)
    options = {"fields": ["condition"], "form": "mix", "mix": 0.3, "num_texts": 10, "max_text_length": 32}
    loader, share = StreamingLoader(made.path, batch_size=60, seed=5, **options), []
    for epoch in range(2):
        (batch,) = list(loader)
        for row, key in enumerate(batch["keys"]):
            texts, long = written[key].texts, _long(5, epoch, key, 10, 0.3)
            numbers = draw_texts(5, epoch, key, len(texts["prompt"][1]) - 1, 10)
            for place, number in enumerate(numbers):
                ids, offsets = texts["prompt_answer" if long[place] else "prompt"]
                want, mask = rebuild(ids[offsets[number] : offsets[number + 1]], spec, 32)
                assert np.array_equal(batch["condition_ids"][row, place], want)
                assert np.array_equal(batch["attention_mask"][row, place], mask)
            share.append(sum(long))
    # 1200 texts: the mean of a binomial of 0.3, and of its variance within samples, not all or nothing.
    assert abs(np.mean(share) - 3.0) < 6 * np.sqrt(2.1 / 120)
    assert np.var(share) < 4


@pytest.mark.parametrize(("mix", "forms"), [(0.0, "prompt"), (1.0, "prompt_answer")])
def test_mix_of_none_and_of_all(tmp_path, mix, forms):
    made = write_set(tmp_path / "set", 6, text_counts=[9])
    options = {"batch_size": 6, "num_texts": 4}
    mixed = next(iter(StreamingLoader(made.path, form="mix", mix=mix, **options)))
    plain = next(iter(StreamingLoader(made.path, form=forms, **options)))
    assert torch.equal(mixed["condition_ids"], plain["condition_ids"])


def test_a_form_that_the_set_lacks_is_refused(tmp_path):
    made = write_set(tmp_path / "set", 3, spec={"forms": ["prompt"]})
    StreamingLoader(made.path, form="prompt", batch_size=3)
    for form in ("mix", "prompt_answer"):
        with pytest.raises(UsageError, match="no texts of form prompt_answer"):
            StreamingLoader(made.path, form=form)


@pytest.mark.parametrize("shuffle", [True, False, "shards"])
def test_batches_come_in_the_order_of_the_epoch(tmp_path, shuffle):
    made = write_set(tmp_path / "set", 11, shard_samples=4)
    keys = [sample.key for sample in made.samples]
    groups = np.repeat([0, 1, 2], [4, 4, 3]) if shuffle == "shards" else None
    loader = StreamingLoader(made.path, batch_size=2, shuffle=shuffle, seed=9, remainder="pad", readers=3)
    for epoch in range(2):
        order = epoch_order(9, epoch, 11, shuffle=bool(shuffle), groups=groups)
        got = [key for batch in loader for key in batch["keys"] if key]
        assert got == [keys[number] for number in order]


def test_ranks_share_an_epoch(tmp_path):
    made = write_set(tmp_path / "set", 23)
    loaders = [
        StreamingLoader(made.path, batch_size=3, rank=rank, world_size=3, remainder="pad")
        for rank in range(3)
    ]
    batches = [list(loader) for loader in loaders]
    assert {len(part) for part in batches} == {len(loaders[0])} == {3}
    keys = [key for part in batches for batch in part for key in batch["keys"] if key]
    assert sorted(keys) == sorted(sample.key for sample in made.samples)


def test_rank_comes_from_the_environment(tmp_path, monkeypatch):
    made = write_set(tmp_path / "set", 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    got = [key for batch in StreamingLoader(made.path, batch_size=2, shuffle=False) for key in batch["keys"]]
    keys = [sample.key for sample in made.samples]
    assert got == keys[2:4] + keys[6:8]
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UsageError, match="rank and world size"):
        StreamingLoader(made.path)
    assert len(StreamingLoader(made.path, batch_size=2, rank=0, world_size=1)) == 4
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        StreamingLoader(made.path)
