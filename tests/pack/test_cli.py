"""The command line: results on stdout, messages on stderr, exit codes, and nothing heavy for --help."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from llgbm_pack.cli.commands import main
from llgbm_pack.cli.output import human_bytes
from llgbm_shards import ShardSet
from support.commands import SCRIPTS, command, here, run
from support.tiny_zoo import write_adapter, write_deltas, write_zoo

COMMANDS = sorted(main.commands)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """zoo, deltas, and a set of them."""
    root = tmp_path_factory.mktemp("cli")
    write_deltas(root / "deltas", write_zoo(root / "zoo", 5))
    assert here("build", root / "zoo", root / "out", "--deltas", root / "deltas", "--workers", 1).code == 0
    return root


@pytest.fixture(scope="module")
def key(tiny):
    return ShardSet(tiny / "out").keys[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name):
    done = here(name, "-h")
    assert done.code == 0
    for option in ("--format [text|json]", "-q, --quiet", "-v, --verbose", "-h, --help", "--version"):
        assert option in done.out, option
    assert here(name, "--version").out.startswith("llgbm-pack, version 0.")


HEAVY = {
    "torch",
    "transformers",
    "pyarrow",
    "numpy",
    "safetensors",
    "tokenizers",
    "peft",
    "rich",
    "webdataset",
}


def test_nothing_heavy_is_imported_for_the_command_line_and_its_help():
    """tests/bench/bench_start.py says what that is worth in seconds."""
    code = (
        "import contextlib, io, sys\n"
        "from llgbm_pack.cli.commands import check_main, main\n"
        "for program, args in [(main, []), (check_main, []), *((main, [name]) for name in main.commands)]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        program([*args, '--help'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "click" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_check_needs_no_torch(tiny):
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from llgbm_pack.cli.commands import check_main\ncheck_main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny / "out", "-q"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ": sound (5 samples in 1 shards, full check" in done.stdout


def test_json_of_every_result(tiny, key, tmp_path):
    build = ("build", tiny / "zoo", tmp_path / "out", "--deltas", tiny / "deltas", "--workers", 1)
    wanted = [
        ((*build, "--dry-run"), {"samples", "shards", "tokens", "estimated_bytes", "skipped"}),
        (build, {"packed", "skipped", "digest", "matched_by", "seconds", "packing_seconds", "set_bytes"}),
        (("check", tiny / "out"), {"findings", "samples", "digest"}),
        (("inspect", tiny / "out"), {"samples", "tokens", "members", "digest"}),
        (("inspect", tiny / "out", key), {"shard", "offset", "members", "json"}),
        (("export", tiny / "out", tmp_path / "adapter", key), {"dest", "checkpoints", "inexact"}),
    ]
    for args, names in wanted:
        done = here(*args, "--format", "json", "-q")
        assert (done.code, done.err) == (0, ""), args
        assert names <= done.json.keys(), args


def test_quiet_is_silent_on_stderr_even_with_workers(tiny, demo_zoo, tmp_path):
    """Libraries included: transformers and torch have a lot to say."""
    args = ["--text-tokenizer", demo_zoo.tokenizer, "--workers", 2, "--shard-bytes", 9000, "-q"]
    done = run("build", tiny / "zoo", tmp_path / "out", *args)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("packed     5 of 5 checkpoints")


def test_verbose_lists_everything(tmp_path):
    write_zoo(tmp_path / "zoo", 2)
    for number in range(25):
        config = write_adapter(tmp_path / f"zoo/bad_{number}", number) / "adapter_config.json"
        config.write_text(f'{{"peft_type": "LORA", "r": {number + 9}, "lora_alpha": 8}}')
    args = ("build", tmp_path / "zoo", tmp_path / "out", "--workers", 1, "--overwrite")
    short, long = here(*args), here(*args, "-v")
    assert (short.code, long.code) == (1, 1)
    assert len(re.findall("^skipped    bad_", short.out, re.MULTILINE)) == 20
    assert "... and 5 more skipped (-v lists all; skipped.json keeps them)" in short.out
    assert len(re.findall("^skipped    bad_", long.out, re.MULTILINE)) == 25


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shard-bytes", "1TB"], "write for example 512MiB or 1GiB"),
        (["--shard-bytes", "0"], "at least 1"),
        (["--split", "1.5"], "write for example val=0.1"),
        (["--max-texts", "0"], "neither a positive count nor `all`"),
        (["--map", "old", "--deltas", "."], "not OLD=NEW"),
        (["--map", "old=new"], "--map is of no use without --deltas"),
        (["--form", "answer"], "--form is of no use without --text-tokenizer"),
        (["--joiner", " "], "--joiner is of no use without --text-tokenizer"),
        (["--map", "a=b"], "--map is of no use without --deltas"),
        (["--missing-delta", "skip"], "--missing-delta is of no use without --deltas"),
        (["--split-by", "checkpoint"], "--split-by is of no use without --split"),
        (["--form", "answer", "--form", "answer", "--text-tokenizer", "x"], "each form once"),
        (["--alpha", "nan"], "positive number"),
        (["--alpha", "-1"], "positive number"),
        (["--seed", str(2**63)], "64 bits"),
        (["--rank", "0"], "--rank"),
        (["--workers", "0"], "--workers"),
        (["--dtype", "int8"], "bfloat16"),
        (["--deltas", "nowhere"], "nowhere"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage(tiny, tmp_path, more, said):
    done = here("build", tiny / "zoo", tmp_path / "out", "--workers", 1, *more)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2KiB", 2048), ("1.5MiB", 3 << 19), ("1gib", 1 << 30), ("3 KB", 3000)]
)
def test_sizes(tiny, tmp_path, text, size):
    out = tmp_path / "out"
    assert here("build", tiny / "zoo", out, "--workers", 1, "-q", "--shard-bytes", text).code == 0
    assert json.loads((out / "shardset.json").read_bytes())["options"]["shard_bytes"] == size


def test_sizes_for_people():
    assert [human_bytes(size) for size in (0, 1023, 1536, 5 << 20, 1 << 30, 3 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "1.0 GiB", "3.0 TiB",
    ]  # fmt: skip


def test_exit_codes_of_check(tiny, tmp_path):
    assert here("check", tiny / "out").code == 0
    assert here("check", tiny / "out", "--expect-digest", "0" * 64).code == 1
    assert here("check", tmp_path / "none").code == 3


@pytest.mark.parametrize(
    "command", [("check",), ("inspect",), ("export", "dest", "key"), ("stats", "-o", "file"), ("bench",)]
)
def test_no_such_set(tmp_path, command):
    name, *more = command
    done = here(name, tmp_path / "nowhere", *more)
    assert (done.code, done.out) == (3, "")
    assert "nowhere: no such directory" in done.err


def test_no_such_device(tiny):
    for device in ("nonsense", "cuda:99", "cpu:x"):
        done = here("bench", tiny / "out", "--device", device)
        assert (done.code, done.out) == (2, "")
        assert device in done.err


def test_inspect_in_words(tiny, key):
    text = here("inspect", tiny / "out").out
    assert "samples    5 (5 train), 5 with a delta" in text
    assert "tokens     13 of 4 x 16 bfloat16, sorted order, 3 modules" in text
    assert key in text
    text = here("inspect", tiny / "out", key).out
    assert "lora       rank 4, alpha 8, scaling 2, bfloat16" in text
    assert "matched by path" in text
    done = here("inspect", tiny / "out", "nokey")
    assert (done.code, done.out) == (2, "")
    assert "no such sample: got 'nokey'" in done.err


def test_a_reader_that_goes_away(tiny):
    """As with `| head -1`: no traceback, and no complaint of the interpreter at its end."""
    for args in (("inspect", tiny / "out"), ("--help",), ("build", tiny / "zoo", tiny / "x", "--dry-run")):
        read, write = os.pipe()
        os.close(read)
        with subprocess.Popen(command(*args), stdout=write, stderr=subprocess.PIPE, text=True) as process:
            os.close(write)
            _, err = process.communicate(timeout=60)
        assert err == "", args
        assert process.returncode == 3


def test_a_terminal_that_goes_away(tiny, tmp_path):
    read, write = os.pipe()
    os.close(read)
    args = command("build", tiny / "zoo", tmp_path / "out", "--workers", 1)
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=write, text=True) as process:
        os.close(write)
        out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 3)


def on_a_terminal(args, **environment):
    """What a command writes to a terminal on stderr."""
    main_end, program_end = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", **environment}
    env = {name: value for name, value in env.items() if value}
    with subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=program_end, env=env) as process:
        os.close(program_end)
        seen = b""
        while True:
            try:
                data = os.read(main_end, 65536)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
            if not data:
                break
            seen += data
        os.close(main_end)
    assert process.returncode == 0
    return seen.decode()


def test_no_color(tiny, tmp_path):
    build = ["build", tiny / "zoo", "--workers", 1, "--shard-bytes", 1]
    coloured = re.compile("\x1b\\[[0-9;]*[1-9][0-9;]*m")
    plain = on_a_terminal(command(*build[:2], tmp_path / "a", *build[2:]), NO_COLOR="1")
    bright = on_a_terminal(command(*build[:2], tmp_path / "b", *build[2:]), NO_COLOR="")
    assert "packing" in plain
    assert not re.search("\x1b\\[[0-9;]*3[0-9][0-9;]*m", plain)
    assert coloured.search(bright)


def test_both_programs_are_installed():
    assert (SCRIPTS / "llgbm-pack").exists()
    assert run("--version", program="llgbm-check").out.startswith("llgbm-check, version 0.")
