"""Shards that are no shards: what a tar can do to a reader that trusts it."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

from llgbm_shards import ustar

GIB = 1 << 30


def _archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    for info, data in members:
        sink.write(info.tobuf(form) + data + bytes(-len(data) % 512))
    return sink.getvalue() + ustar.END


def _info(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "", **pax: str
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def _compressed(open_: Callable[..., gzip.GzipFile | bz2.BZ2File]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with open_(path, "wb", compresslevel=9) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))

    return write


def _sparse(path: Path) -> None:
    """Old GNU sparse: one block of data at the end of 8 GiB."""
    info = bytearray(_info("a.json", b"S", 512).tobuf(tarfile.GNU_FORMAT))
    info[386:398], info[398:410] = b"%011o\0" % (8 * GIB - 512), b"%011o\0" % 512
    info[483:495] = b"%011o\0" % (8 * GIB - 1)
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    path.write_bytes(bytes(info) + bytes(512) + ustar.END)


def _pax_size(path: Path) -> None:
    info = _info("a.json")
    info.pax_headers = {"size": str(2**60)}
    path.write_bytes(_archive((info, b""), form=tarfile.PAX_FORMAT))


def _pax_chain(path: Path) -> None:
    path.write_bytes(_archive(*[(_info("x", b"x", 30), b"30 path=" + b"a" * 21 + b"\n")] * 20_000))


def _long_names(path: Path) -> None:
    path.write_bytes(_archive(*[(_info("././@LongLink", b"L", 4096), b"a" * 4095 + b"\0")] * 5000))


def _one(kind: bytes, name: str = "a.json", link: str = "") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(_archive((_info(name, kind, link=link), b"")))


def _canonical(name: str) -> Callable[[Path], None]:
    """A member of that name whose header is the canonical one: only the name is wrong."""
    return lambda path: path.write_bytes(ustar.header(name, 5) + b"evil\n" + bytes(507) + ustar.END)


def _declares(size: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        head = bytearray(ustar.header("a.json", 0))
        head[124:136] = size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        path.write_bytes(bytes(head) + ustar.END)

    return write


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket may not be longer than 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


#: Name -> writes what stands where a shard should.
TARS: dict[str, Callable[[Path], None]] = {
    "gzip bomb": _compressed(gzip.GzipFile),
    "bzip2 bomb": _compressed(bz2.BZ2File),
    "sparse member": _sparse,
    "pax size of 2**60": _pax_size,
    "chained pax headers": _pax_chain,
    "chained long names": _long_names,
    "symbolic link": _one(tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": _one(tarfile.LNKTYPE, link="/etc/passwd"),
    "character device": _one(tarfile.CHRTYPE),
    "block device": _one(tarfile.BLKTYPE),
    "FIFO member": _one(tarfile.FIFOTYPE),
    "directory member": _one(tarfile.DIRTYPE),
    "contiguous member": _one(tarfile.CONTTYPE),
    "absolute name": _canonical("/tmp/evil.json"),
    "name of another directory": _canonical("../../evil.json"),
    "name of a command": _canonical("pipe:touch evil.json"),
    "8 GiB declared": _declares(b"77777777777\0"),
    "base-256 size": _declares(b"\x80" + b"\xff" * 11),
    "negative size": _declares(b"\xff" * 12),
    "1 TiB of nothing": _hole,
    "named pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to another file": lambda path: path.symlink_to("/etc/passwd"),
    "link to itself": lambda path: path.symlink_to(path),
    "directory": lambda path: path.mkdir(),
    "socket": _socket,
}
