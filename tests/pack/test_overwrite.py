"""--overwrite keeps the old set until the end, and nothing that is not a set is ever replaced."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

from llgbm_pack import build
from llgbm_shards import check
from llgbm_shards.errors import DamageError, LockedError, StorageError, UsageError
from support.commands import here, started, wait_until
from support.tiny_zoo import tree, write_adapter, write_zoo
from support.unfinished import COUNT, args, options, shards


@pytest.fixture
def old(own):
    """Another, older set at ``own/out``."""
    build(options(own, own / "out", limit=3, workers=1))
    return tree(own / "out")


def test_overwrite_keeps_the_old_set_until_the_end(made, own, old):
    out = own / "out"
    with started(*args(own, out, workers=2), "--overwrite") as process:
        wait_until(lambda: shards(own / ".out.replacement") > 2, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert tree(out) == old
    assert check(out).sound
    done = here(*args(own, out, workers=1), "--overwrite", "--format", "json")
    assert done.code == 0
    assert done.json["resumed"] >= 1
    assert tree(out) == tree(made / "unbroken")
    assert sorted(path.name for path in own.iterdir()) == ["deltas", "out", "zoo"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite_swaps(made, own, old, exchange, monkeypatch):
    """On a file system without the exchange of two names, by two renames."""
    from llgbm_pack.packing import overwrite as replace

    if not exchange:
        monkeypatch.setattr(replace, "_exchange", lambda new, out: False)
    build(options(own, own / "out", overwrite=True, workers=1))
    assert tree(own / "out") == tree(made / "unbroken")
    assert sorted(path.name for path in own.iterdir()) == ["deltas", "out", "zoo"]


def test_overwrite_through_a_link_keeps_the_link(made, own, old):
    (own / "link").symlink_to("out")
    build(options(own, own / "link", overwrite=True, workers=1))
    assert (own / "link").is_symlink()
    assert tree(own / "out") == tree(made / "unbroken")


def test_what_an_exchange_left_behind_is_no_beginning(made, own, old):
    """Killed after the swap, before the old set was deleted: it lies where the replacement was."""
    shutil.copytree(own / "out", own / ".out.replacement")
    build(options(own, own / "out", overwrite=True, workers=1))
    assert tree(own / "out") == tree(made / "unbroken")


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_replaced(made, tmp_path, overwrite):
    out = tmp_path / "out"
    (out / "thesis").mkdir(parents=True)
    (out / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"not of a shard set.*got thesis"):
        build(options(made, out, overwrite=overwrite, workers=1))
    assert tree(tmp_path) == {"out/thesis/chapter.tex": b"years of work"}


def test_overwrite_refuses_files_added_to_a_set(own, old):
    (own / "out/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"got notes\.txt"):
        build(options(own, own / "out", overwrite=True, workers=1))


@pytest.mark.parametrize("verify", ["full", "first-epoch", "off"])
def test_a_build_that_overwrites_gives_no_running_reader_other_weights(own, verify):
    from llgbm_loader import ShardDataset, StreamingLoader

    out = own / "out"
    build(options(own, out, workers=1))
    dataset = ShardDataset(out, split=None)
    loader = StreamingLoader(out, split=None, batch_size=1, readers=1, shuffle=False, verify=verify)
    want = [(batch["keys"], batch["tokens"]) for batch in loader]
    for number, path in enumerate(write_zoo(own / "zoo", COUNT)):
        write_adapter(own / "zoo" / path, number + 100)
    build(options(own, out, overwrite=True, workers=1))
    new = StreamingLoader(out, split=None, batch_size=1, readers=1, shuffle=False)
    assert [batch["keys"] for batch in new] == [keys for keys, _ in want]
    assert not torch.equal(next(iter(new))["tokens"].nan_to_num(), want[0][1].nan_to_num())
    for reader in (lambda: list(loader), lambda: dataset[0]):
        with pytest.raises(DamageError, match="the set was replaced"):
            reader()


@pytest.mark.parametrize("begun", [True, False])
def test_a_set_is_not_replaced_while_it_is_repaired(own, old, begun, monkeypatch):
    """Not even by a repair that begins right before the exchange."""
    from llgbm_pack.packing import overwrite as replace
    from llgbm_pack.packing.lock import builder_lock
    from llgbm_pack.packing.overwrite import swap_in

    build(options(own, own / "new", workers=1))
    if begun:
        with builder_lock(own / "out/.pack"), pytest.raises(LockedError):
            swap_in(own / "new", own / "out")
        assert {name: data for name, data in tree(own / "out").items() if ".pack" not in name} == old
        return
    plain, refused = replace._exchange, []

    def exchange(new, out):
        with pytest.raises(LockedError) as caught, builder_lock(out / ".pack"):
            pass
        refused.append(caught.value)
        return plain(new, out)

    monkeypatch.setattr(replace, "_exchange", exchange)
    swap_in(own / "new", own / "out")
    assert refused
    assert not (own / "out/.pack").exists()
    assert not (own / "new").exists()


def test_a_swap_that_fails_leaves_no_lock(own, old, monkeypatch):
    from llgbm_pack.packing import overwrite as replace

    def fail(new, out):
        raise OSError(5, "Input/output error")

    build(options(own, own / "new", workers=1))
    monkeypatch.setattr(replace, "_exchange", fail)
    with pytest.raises(StorageError):
        replace.swap_in(own / "new", own / "out")
    assert tree(own / "out") == old
