"""The field ``weights`` of the raw datasets: a packed set's, in every view, and what a foreign tokenizer is told."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_loader.views import VIEWS
from llgbm_pack import LoraTokenizer2D, PackOptions, build
from llgbm_pack.raw import Text2Qwen25LoRA_DeltaDataset, create_dataloader
from llgbm_pack.tokenize.conditions import load_tokenizer
from llgbm_shards.errors import UsageError
from support.dnd_like import FrameTokenizer
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import write_adapter, write_deltas, write_zoo

#: Ten comes before two in token order.
LAYERS = {
    f"model.layers.{layer}.self_attn.{kind}": shape
    for layer in (2, 10)
    for kind, shape in (("q_proj", (32, 48)), ("v_proj", (32, 16)))
}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def packed(tmp_path_factory, request):
    """A zoo of mixed ranks, one adapter without a module, packed in a set beside it."""
    root = tmp_path_factory.mktemp("weights")
    options = {"dtype": request.param, "modules": LAYERS}
    paths = write_zoo(root / "zoo", 4, **options)
    write_adapter(root / "zoo/alpha/low", 7, rank=2, **options)
    others = dict(list(LAYERS.items())[1:])
    write_adapter(root / "zoo/alpha/absent", 8, **{**options, "modules": others})
    deltas = write_deltas(root / "deltas", [*paths, "alpha/low", "alpha/absent"])
    tokenizer = save_tiny("bert", root / "tokenizer")
    for order in ("sorted", "dnd"):
        build(
            PackOptions(
                zoo=root / "zoo",
                out=root / order,
                deltas=deltas,
                text_tokenizer=str(tokenizer),
                token_order=order,
                rank=4,
                workers=1,
            )
        )
    return root


def arguments(root, order):
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    return root / "zoo", LoraTokenizer2D(order=order, rank=4), tokenizer, root / "deltas"


def tree_equal(one, other):
    """Equal to the bit, in names, order and dtypes."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(tree_equal(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(tree_equal, one, other))
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == torch.float32:
        one, other = (side.contiguous().view(torch.int32) for side in (one, other))
    return torch.equal(one, other)


def row_of(tree, row):
    if isinstance(tree, dict):
        return {name: row_of(part, row) for name, part in tree.items()}
    return tuple(part[row] for part in tree) if isinstance(tree, tuple) else tree[row]


def by_checkpoint(batches):
    return {
        path: {name: row_of(batch[name], row) for name in ("weights", "ranks")}
        for batch in batches
        for row, path in enumerate(batch["checkpoint"])
    }


@pytest.mark.parametrize("order", ["sorted", "dnd"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_a_packed_sets(packed, view, order):
    common = {"columns": ("checkpoint",), "view": view}
    raw = create_dataloader(*arguments(packed, order), batch_size=4, num_workers=0, **common)
    one = by_checkpoint(raw)
    fields = ("weights", "delta")
    streamed = by_checkpoint(StreamingLoader(packed / order, batch_size=2, fields=fields, **common))
    assert len(one) == 6
    assert one.keys() == streamed.keys()
    items = {item["checkpoint"]: item for item in raw.dataset}
    for item in ShardDataset(packed / order, fields=fields, **common):
        path = item["checkpoint"]
        for name in ("weights", "ranks"):
            assert tree_equal(one[path][name], streamed[path][name])
            assert tree_equal(one[path][name], item[name])
            assert tree_equal(one[path][name], items[path][name])
    assert raw.dataset.layout == StreamingLoader(packed / order, batch_size=1).layout


def test_values_are_the_checkpoints_own(packed):
    dataset = Text2Qwen25LoRA_DeltaDataset(*arguments(packed, "dnd"), view="modules")
    absent = 0
    for item in dataset:
        file = load_file(f"{item['checkpoint_path']}/adapter_model.safetensors")
        assert list(item["weights"]) == list(LAYERS), "by layer number"
        for name, (a, b) in item["weights"].items():
            own = [file.get(f"base_model.model.{name}.lora_{side}.weight") for side in "AB"]
            rank = int(item["ranks"][name])
            assert not a[rank:].any()
            assert not b[:, rank:].any()
            if own[0] is None:
                absent += 1
                assert rank == 0
            else:
                assert torch.equal(a[:rank], own[0].float())
                assert torch.equal(b[:, :rank], own[1].float())
    assert absent == 1


def test_items_collated_by_torch_itself_are_of_one_storage(packed):
    raw = create_dataloader(*arguments(packed, "sorted"), num_workers=0, view="modules").dataset
    fields = [{name: raw[number][name] for name in ("weights", "ranks")} for number in range(3)]
    batch = torch.utils.data.default_collate(fields)
    leaves = [side for pair in batch["weights"].values() for side in pair]
    assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == 1
    for name, (a, b) in batch["weights"].items():
        assert torch.equal(a[1], fields[1]["weights"][name][0])
        assert torch.equal(b[1], fields[1]["weights"][name][1])


def test_worker_processes_send_batches_of_one_storage(packed):
    loader = create_dataloader(*arguments(packed, "sorted"), batch_size=3, num_workers=2, view="modules")
    for batch in loader:
        for name in ("weights", "ranks"):
            leaves = (
                batch[name].values()
                if name == "ranks"
                else [s for pair in batch[name].values() for s in pair]
            )
            assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == 1


def test_without_a_view_items_are_as_they_were(packed):
    batch = next(iter(create_dataloader(*arguments(packed, "sorted"), num_workers=0)))
    assert not {"weights", "ranks"} & set(batch)


def test_a_foreign_tokenizer_has_no_views(packed):
    zoo, _, *others = arguments(packed, "sorted")
    with pytest.raises(UsageError, match=r"view: weights are views of the pieces .* LoraTokenizer2D"):
        Text2Qwen25LoRA_DeltaDataset(zoo, FrameTokenizer(), *others, view="layers")


def test_items_of_two_views_are_no_batch(packed):
    items = [
        Text2Qwen25LoRA_DeltaDataset(*arguments(packed, "sorted"), view=view)[0]
        for view in ("flat", "modules")
    ]
    with pytest.raises(UsageError, match="weights: items of different views in one batch"):
        Text2Qwen25LoRA_DeltaDataset.collate_fn(items)
