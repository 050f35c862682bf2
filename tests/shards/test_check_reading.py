"""A check that cannot read, reads wrong once, or reads only a part."""

from __future__ import annotations

import errno
import os

import pytest

from llgbm_shards import ShardSet, UsageError, check, scan
from support.synthetic import write_set

FIRST = "train-000000.tar"


class _Faulty:
    """os.preadv that fails at one offset, a number of times."""

    def __init__(self, offset, times, error=errno.EIO):
        self.offset, self.times, self.error = offset, times, error
        self.real = os.preadv

    def __call__(self, fd, buffers, offset):
        if offset == self.offset and self.times > 0:
            self.times -= 1
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
            count = self.real(fd, buffers, offset)
            buffers[0][0] ^= 1
            return count
        return self.real(fd, buffers, offset)


def _target(made):
    """The pieces of the third sample of the first shard: no other member starts at its offset."""
    return ShardSet(made.path).extents(2)[0]


def test_unreadable_bytes_are_kept_apart_from_damage_and_hide_no_other(made, monkeypatch):
    extent = _target(made)
    monkeypatch.setattr(scan.os, "preadv", _Faulty(extent.offset, times=100))
    report = check(made.path, workers=1)
    unreadable = [finding for finding in report.findings if finding.shard == FIRST]
    assert [(finding.key, finding.member, finding.kind) for finding in unreadable] == [
        (extent.key, "pieces.safetensors", "unreadable")
    ]
    assert "Input/output error" in unreadable[0].what
    assert report.exit_code == 3
    assert not report.sound


def test_damage_beside_something_unreadable_is_damage(made, monkeypatch):
    extent = _target(made)
    monkeypatch.setattr(scan.os, "preadv", _Faulty(extent.offset, times=100))
    (made.path / "skipped.json").write_bytes(b"")
    assert check(made.path, workers=1).exit_code == 1


@pytest.mark.parametrize("error", [errno.EIO, 0], ids=["failed read", "wrong bytes"])
def test_a_read_that_is_right_the_second_time_is_transient_and_the_set_sound(made, monkeypatch, error):
    extent = _target(made)
    monkeypatch.setattr(scan.os, "preadv", _Faulty(extent.offset, times=1, error=error))
    report = check(made.path, workers=1)
    [finding] = [finding for finding in report.findings if finding.shard == FIRST]
    assert (finding.key, finding.member, finding.kind) == (extent.key, "pieces.safetensors", "transient")
    assert finding.what.startswith("right when it was read again")
    assert report.sound
    assert report.exit_code == 0


def test_a_small_file_that_is_readable_the_second_time_is_transient(made, monkeypatch):
    real, left = os.pread, [1]

    def pread(fd, size, offset):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("index.parquet") and left:
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    report = check(made.path)
    assert [(finding.shard, finding.kind) for finding in report.findings] == [("index.parquet", "transient")]
    assert report.exit_code == 0


def test_a_transient_failure_does_not_keep_the_shards_digest_from_being_proven(made, monkeypatch):
    """Without an index the digest of the shard is all that proves its json members."""
    extent = _target(made)
    (made.path / "index.parquet").unlink()
    text = (made.path / FIRST).read_bytes()
    place = text.index(b'"task":"') + len(b'"task":"')
    (made.path / FIRST).write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
    monkeypatch.setattr(scan.os, "preadv", _Faulty(extent.offset, times=1))
    report = check(made.path, workers=1)
    found = {(finding.shard, finding.kind) for finding in report.findings}
    assert found == {("index.parquet", "damage"), (FIRST, "transient"), (FIRST, "damage")}


def test_reads_go_on_where_the_system_gives_less(made, monkeypatch):
    real = os.pread
    whole = ShardSet(made.path).read_sample(0)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 100), offset))
    assert ShardSet(made.path).read_sample(0).pieces.tobytes() == whole.pieces.tobytes()


def test_other_kinds_of_files_in_the_place_of_a_shard_are_named_and_never_waited_for(made):
    (made.path / FIRST).unlink()
    os.mkfifo(made.path / FIRST)
    report = check(made.path)
    assert [(finding.shard, finding.what) for finding in report.findings] == [(FIRST, "not a regular file")]
    (made.path / "shardset.json").unlink()
    (made.path / "shardset.json").mkdir()
    report = check(made.path)
    assert [(finding.shard, finding.kind) for finding in report.findings] == [("shardset.json", "unreadable")]
    assert report.exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_forbidden_shard_is_unreadable(made):
    (made.path / FIRST).chmod(0)
    report = check(made.path)
    assert [finding.kind for finding in report.findings] == ["unreadable"]
    assert report.exit_code == 3


def test_samples_of_successive_seeds_cover_the_set_and_differ(tmp_path):
    made = write_set(tmp_path / "many", 200, shard_samples=40)
    read = [check(made.path, sample=0.25, seed=seed).samples_read for seed in range(8)]
    assert sum(read[:4]) >= 200
    assert all(20 < count < 80 for count in read)
    assert read[4:] == read[:4]  # Four quarters make a turn.
    with pytest.raises(UsageError, match="not a fraction"):
        check(made.path, sample=0.0)


def test_a_sampling_check_finds_damage_exactly_when_it_reads_the_sample(made):
    opened = ShardSet(made.path)
    extent = opened.extents(6)[0]
    data = bytearray((made.path / extent.shard).read_bytes())
    data[extent.offset] ^= 1
    (made.path / extent.shard).write_bytes(data)
    reports = [check(made.path, sample=0.25, seed=seed) for seed in range(4)]
    hits = [{finding.key for finding in report.findings} for report in reports]
    assert sorted(map(sorted, hits)) == [[], [], [], [extent.key]]
    assert all(report.bytes_read < check(made.path).bytes_read / 2 for report in reports)


def test_the_seed_of_a_day_is_reported(made):
    import time

    report = check(made.path, sample=0.5)
    assert report.to_json()["seed"] in {int(time.time() // 86400), int(time.time() // 86400) - 1}
    assert check(made.path, sample=0.5, seed=report.seed).samples_read == report.samples_read


def test_progress_adds_up_to_the_bytes_read(made):
    told = []
    report = check(made.path, progress=told.append)
    assert (
        sum(told)
        == report.bytes_read
        == sum(extent.size for number in range(12) for extent in ShardSet(made.path).extents(number))
    )


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_findings_do_not_depend_on_the_number_of_threads(made, workers):
    for number in (0, 6, 11):
        extent = ShardSet(made.path).extents(number)[1]
        data = bytearray((made.path / extent.shard).read_bytes())
        data[extent.offset + 5] ^= 1
        (made.path / extent.shard).write_bytes(data)
    report = check(made.path, workers=workers)
    assert [finding.key for finding in report.findings] == [
        ShardSet(made.path).extents(number)[0].key for number in (0, 6, 11)
    ]
