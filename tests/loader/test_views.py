"""The views against a plain reference: each matrix joined from its pieces, one module at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_loader.views import WeightView, stacks_of
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.tokenize.module_table import make_layout

KINDS = {"self_attn.q_proj": (24, 16), "self_attn.k_proj": (24, 8), "mlp.down_proj": (40, 24)}


def adapters(layers, *, order="sorted", dtype="bfloat16", chunk=None, count=2, rank=4, kinds=KINDS):
    """Sources (one dict of pairs an adapter; ranks differ, one module is absent), their layout and pieces."""
    names = [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    shapes = {name: (rank, *kinds[name.split(".", 3)[3]]) for name in names}
    layout = make_layout(shapes, dtype=dtype, token_order=order, chunk=chunk)
    generator = torch.Generator().manual_seed(0)
    sources, pieces = [], []
    for number in range(count):
        own = {name: max(1, rank - (at + number) % 3) for at, name in enumerate(names)}
        pairs = {
            name: tuple(
                torch.randn(shape, generator=generator).to(getattr(torch, dtype))
                for shape in ((own[name], shapes[name][1]), (shapes[name][2], own[name]))
            )
            for name in names
        }
        if number == 1:
            del pairs[names[-1]]
        out = torch.empty(layout.pieces_shape, dtype=getattr(torch, dtype))
        PieceEncoder(layout).encode(pairs, out, torch.empty(layout.num_tokens, 2))
        sources.append(pairs)
        pieces.append(out)
    return sources, layout, torch.stack(pieces)


def padded(pairs, layout, name):
    """A (r, in) and B (out, r) of a module, zeros beyond its rank; all zeros where it is absent."""
    module = next(module for module in layout.modules if module.name == name)
    a = torch.zeros(layout.rank, module.in_features, dtype=getattr(torch, layout.dtype))
    b = torch.zeros(module.out_features, layout.rank, dtype=a.dtype)
    if name in pairs:
        rank = len(pairs[name][0])
        a[:rank], b[:, :rank] = pairs[name]
    return a, b


def numeric(layout):
    return sorted(layout.modules, key=lambda module: (module.layer, module.first_token))


@settings(max_examples=30, deadline=None)
@given(
    layers=st.integers(1, 13),
    order=st.sampled_from(["sorted", "dnd"]),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    chunk=st.sampled_from([None, 3, 7, 16]),
    view=st.sampled_from(["modules", "layers", "flat"]),
)
def test_every_view_holds_the_source_values(layers, order, dtype, chunk, view):
    sources, layout, pieces = adapters(layers, order=order, dtype=dtype, chunk=chunk)
    views = WeightView(layout, view)
    shown = views.present(views.gather(pieces), views.ranks(pieces))
    for number, pairs in enumerate(sources):
        wanted = {module.name: padded(pairs, layout, module.name) for module in layout.modules}
        rank = {
            module.name: len(pairs[module.name][0]) if module.name in pairs else 0
            for module in layout.modules
        }
        names = [module.name for module in numeric(layout)]
        if view == "modules":
            assert list(shown["weights"]) == names
            for name in names:
                for side in (0, 1):
                    assert torch.equal(shown["weights"][name][side][number], wanted[name][side])
                assert shown["ranks"][name][number] == rank[name]
        elif view == "layers":
            assert set(shown["weights"]) == {kind.rsplit(".", 1)[1] for kind in KINDS}
            for kind, stack in shown["weights"].items():
                of_kind = [name for name in names if name.endswith(kind)]
                for side in (0, 1):
                    expected = torch.stack([wanted[name][side] for name in of_kind])
                    assert torch.equal(stack[side][number], expected)
                assert shown["ranks"][kind][number].tolist() == [rank[name] for name in of_kind]
        else:
            parts = [matrix.reshape(-1) for name in names for matrix in wanted[name]]
            assert torch.equal(shown["weights"][number], torch.cat(parts))
            assert shown["ranks"][number].tolist() == [rank[module.name] for module in layout.modules]


def test_pieces_are_the_stored_pieces():
    _, layout, pieces = adapters(3)
    views = WeightView(layout, "pieces")
    assert views.gather(pieces) is pieces
    assert views.shape == layout.pieces_shape
    assert views.ranks(pieces).shape == (2, 9)


def layout_of(names_and_shapes):
    return make_layout({name: (2, *shape) for name, shape in names_and_shapes.items()}, dtype="float32")


@pytest.mark.parametrize(
    ("modules", "kinds"),
    [
        # One end of a name in two stacks: as much more of the name as tells them apart.
        (
            {"encoder.block.0.SelfAttention.q": (4, 4), "decoder.block.0.SelfAttention.q": (4, 4)},
            {"encoder.block.*.SelfAttention.q", "decoder.block.*.SelfAttention.q"},
        ),
        ({"layers.0.attn.q": (4, 4), "layers.0.xattn.q": (4, 4)}, {"attn.q", "xattn.q"}),
        # A name that is the end of another.
        ({"q": (4, 4), "layers.1.q": (4, 4)}, {"q", "*.q"}),
        # Layers whose widths differ are no one stack.
        ({"layers.0.up": (4, 4), "layers.1.up": (4, 8), "layers.2.up": (4, 4)}, {"up[4,4]", "up[4,8]"}),
        ({"lm_head": (4, 8)}, {"lm_head"}),
    ],
)
def test_kinds_are_named_apart(modules, kinds):
    stacks = stacks_of(layout_of(modules))
    assert {stack.kind for stack in stacks} == kinds
    assert len({stack.kind for stack in stacks}) == len(stacks)
    assert sorted(at for stack in stacks for at in stack.modules) == list(range(len(modules)))


def test_one_gather_a_sample_and_views_of_it():
    _, layout, pieces = adapters(4)
    for view in ("modules", "layers"):
        views = WeightView(layout, view)
        rows = views.gather(pieces)
        shown = views.present(rows, views.ranks(pieces))["weights"]
        start, end = rows.data_ptr(), rows.data_ptr() + rows.nbytes
        for pair in shown.values():
            assert all(start <= side.data_ptr() < end for side in pair)


def test_the_ranks_of_all_kinds_take_one_gather():
    """An index of each kind, sent to a device batch by batch, would have the host wait for the device's work."""
    _, layout, pieces = adapters(3)
    views = WeightView(layout, "layers")
    ranks = views.present(views.gather(pieces), views.ranks(pieces))["ranks"]
    assert len(ranks) == len(KINDS)
    assert len({one.untyped_storage().data_ptr() for one in ranks.values()}) == 1
