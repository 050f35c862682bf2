"""Traces of the same calls read the same, whatever the process ids and however threads cut their lines."""

from __future__ import annotations

import pytest

from faults.trace import read_trace

OUT = "/x/out"


def read(tmp_path, *lines):
    log = tmp_path / "trace"
    log.write_text("".join(f"{line}\n" for line in lines))
    return read_trace(log, 7)


def told(tmp_path, line):
    (call,) = read(tmp_path, line)
    return call.told(tmp_path / "out")


def test_the_length_of_a_holders_name_is_no_difference(tmp_path):
    lock = f"{tmp_path}/out/.pack/lock"
    short, long = (f'7 pwrite64(4<{lock}>, ""..., {size}, 0) = {size}' for size in (75, 76))
    assert told(tmp_path, short) == told(tmp_path, long)
    assert "pwrite64(4<OUT/.pack/lock>" in told(tmp_path, short)


def test_the_length_of_any_other_write_is_a_difference(tmp_path):
    shard = f"{tmp_path}/out/.tmp-a.tar-17"
    assert told(tmp_path, f'7 write(4<{shard}>, ""..., 75) = 75') != told(
        tmp_path, f'7 write(4<{shard}>, ""..., 76) = 76'
    )


@pytest.mark.parametrize("tail", ["= -1 EIO (Input/output error) (INJECTED)", "= 0"])
def test_a_call_cut_in_two_is_the_call_uncut(tmp_path, tail):
    uncut = read(tmp_path, f"7 fsync(4<{OUT}/a>) {tail}", "9 +++ exited with 0 +++", "7 close(4) = 0")
    cut = read(
        tmp_path,
        f"7 fsync(4<{OUT}/a> <unfinished ...>",
        "9 close(3 <unfinished ...>",
        "9 <... close resumed>) = 0",
        f"7 <... fsync resumed>) {tail}",
        "7 close(4) = 0",
    )
    assert cut == uncut
    assert [call.name for call in cut] == ["fsync", "close"]
