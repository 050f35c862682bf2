"""The examples for trainers on raw A and B: every value against the adapters' own tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from llgbm_loader import ShardDataset
from llgbm_pack import PackOptions, build
from llgbm_pack.look.stats import write_stats
from support.examples import load, run
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import write_adapter, write_deltas

KINDS = {"q_proj": (32, 48), "v_proj": (32, 16), "o_proj": (48, 32)}
LAYERS = (1, 2, 10)  # 10 comes before 2 in token order
MODULES = {f"model.layers.{layer}.self_attn.{kind}": KINDS[kind] for layer in LAYERS for kind in KINDS}
RANK, COUNT = 4, 6


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A zoo whose fifth adapter has half the rank and whose last lacks q_proj of layer 2, and its set and statistics."""
    root = tmp_path_factory.mktemp("weights")
    for number in range(COUNT):
        absent = "layers.2.self_attn.q_proj" if number == COUNT - 1 else "none"
        write_adapter(
            root / "zoo" / f"run_{number}",
            number,
            rank=2 if number == 4 else RANK,
            modules={name: shape for name, shape in MODULES.items() if absent not in name},
            prompts=[f"This is number {number}."],
        )
    options = {
        "deltas": write_deltas(root / "deltas", [f"run_{number}" for number in range(COUNT)]),
        "text_tokenizer": str(save_tiny("bert", root / "tokenizer")),
        "rank": RANK,
        "workers": 1,
    }
    build(PackOptions(zoo=root / "zoo", out=root / "shards", **options))
    write_stats(str(root / "shards"), str(root / "stats.safetensors"))
    return root


def own_matrices(packed, number, kind):
    """Of one adapter, for each layer: A (r, in) and B (out, r) float32 as they lie in its file; None where absent."""
    file = load_file(packed / "zoo" / f"run_{number}" / "adapter_model.safetensors")
    keys = [f"base_model.model.model.layers.{layer}.self_attn.{kind}.lora_{{}}.weight" for layer in LAYERS]
    return [
        tuple(file[key.format(side)].float() for side in "AB") if key.format("A") in file else None
        for key in keys
    ]


def stacked(packed, number, kind):
    """The same as stacks (L, r, in) and (L, out, r), zeros where nothing is."""
    width_in, width_out = KINDS[kind]
    a, b = torch.zeros(len(LAYERS), RANK, width_in), torch.zeros(len(LAYERS), width_out, RANK)
    for layer, pair in enumerate(own_matrices(packed, number, kind)):
        if pair is not None:
            a[layer, : len(pair[0])], b[layer, :, : len(pair[0])] = pair
    return a, b


def numbers(packed, ids):
    """Number of the adapter that each text of a batch, (B, L), is of."""
    dataset = ShardDataset(
        packed / "shards", fields=("condition",), columns=("checkpoint",), max_text_length=ids.shape[-1]
    )
    of_text = {tuple(item["condition_ids"].tolist()): item["checkpoint"] for item in dataset}
    assert len(of_text) == COUNT
    return [int(of_text[tuple(row.tolist())].rpartition("_")[2]) for row in ids]


def test_llgbm_is_given_the_teachers_own_tensors_for_its_weight_loss(packed):
    batches = load("llgbm")["training_batches"](str(packed / "shards"), lambda_weight=1.0, batch_size=3)
    seen = []
    for batch in itertools.islice(batches, 2):
        for name, weights in zip(batch["adapter_names"], batch["lora_weights"], strict=True):
            own = load_file(packed / "zoo" / name / "adapter_model.safetensors")
            assert weights.keys() == own.keys()
            assert all(weights[key].dtype == own[key].dtype for key in own)
            assert all(torch.equal(weights[key], own[key]) for key in own)
            seen.append(name)
    batches.close()
    assert sorted(seen) == [f"run_{number}" for number in range(COUNT)]


def test_loragen_is_given_q_and_v(packed):
    batches = load("loragen")["training_batches"](str(packed / "shards"), batch_size=3, max_text_length=16)
    seen = []
    for q, v, ids, mask in itertools.islice(batches, 2):
        assert ids.shape == mask.shape == (3, 16)
        for row, number in enumerate(numbers(packed, ids)):
            for kind, pair in (("q_proj", q), ("v_proj", v)):
                assert all(map(torch.equal, (side[row] for side in pair), stacked(packed, number, kind)))
            seen.append(number)
    batches.close()
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("z_score", [False, True])
def test_rpg_is_given_all_parameters_in_tokens(packed, z_score):
    wanted = torch.stack([flattened(packed, number) for number in range(COUNT)])
    count = wanted.shape[1]
    example = load("rpg")
    batches = example["training_batches"](
        str(packed / "shards"), token_length=500, z_score=z_score, batch_size=2
    )
    seen = []
    for tokens, mean, std in itertools.islice(batches, 3):
        assert tokens.shape == (2, -(-count // 500), 500)
        assert not tokens.flatten(1)[:, count:].any()
        for row, again in enumerate(example["parameters"](tokens, mean, std, count)):
            number = int((wanted - again).abs().amax(1).argmin())
            own, real = wanted[number], tokens[row].flatten()[:count]
            if z_score:
                torch.testing.assert_close(real, (own - own.mean()) / own.std(), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(again, own, rtol=0, atol=1e-7)
            else:
                assert torch.equal(real, own)
                assert torch.equal(again, own)
            seen.append(number)
    batches.close()
    assert sorted(seen) == list(range(COUNT))


def flattened(packed, number):
    """(P,): by layer number, each module's A row by row, then its B."""
    pairs = [stacked(packed, number, kind) for kind in sorted(KINDS)]
    return torch.cat(
        [side[layer].flatten() for layer in range(len(LAYERS)) for pair in pairs for side in pair]
    )


def test_t2l_is_given_z_scores_by_the_sets_statistics(packed):
    example = load("t2l")
    batches = example["training_batches"](
        str(packed / "shards"), str(packed / "stats.safetensors"), batch_size=3, max_text_length=16
    )
    seen = []
    for targets, ids, mask in itertools.islice(batches, 2):
        assert list(targets) == ["q_proj", "v_proj"]
        assert ids.shape == mask.shape == (3, 1, 16)
        for row, number in enumerate(numbers(packed, ids[:, 0])):
            for kind, pair in targets.items():
                for layer, side in itertools.product(range(len(LAYERS)), (0, 1)):
                    assert_z_scores(packed, number, kind, layer, side, pair[side][row, layer])
            seen.append(number)
    batches.close()
    assert sorted(seen) == list(range(COUNT))


def assert_z_scores(packed, number, kind, layer, side, target):
    """A matrix of targets against mean and std over all adapters that have the module in that rank."""
    all_own = [own_matrices(packed, other, kind)[layer] for other in range(COUNT)]
    axis = side  # of the rank: A is (r, in), B is (out, r)
    for rank in range(RANK):
        have = [
            own[side].double().select(axis, rank) for own in all_own if own and own[side].shape[axis] > rank
        ]
        mean, std = (part.float() for part in (torch.stack(have).mean(0), torch.stack(have).std(0)))
        own, got = all_own[number], target.select(axis, rank)
        if own and own[side].shape[axis] > rank:
            wanted = (own[side].select(axis, rank) - mean) / (std + 1e-10)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        else:
            assert not got.any()


def test_all_run_as_programs(packed, monkeypatch, capsys):
    for name, arguments, shown in (
        ("loragen", [], "[(2, 3, 4, 32), (2, 3, 48, 4), (2, 3, 4, 32), (2, 3, 16, 4)] (2, 512)"),
        ("rpg", [], "(2, 1, 8192)"),
        ("t2l", [packed / "stats.safetensors"], "'v_proj': ((2, 3, 4, 32), (2, 3, 16, 4))} (2, 1, 512)"),
    ):
        lines = run(monkeypatch, capsys, name, packed / "shards", *arguments)
        assert len(lines) == 3
        assert all(shown in line for line in lines)
