"""No pickle, no shell, no code from data, and webdataset never sees a name: held by reading the source."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for root in ("shards", "loader", "pack") for path in (ROOT / root).rglob("*.py"))
#: Modules that unpickle, run programs, or unpack archives to disk.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess", "pty",
    "tarfile", "zipfile", "yaml", "xml", "runpy", "code", "imp",
}  # fmt: skip
#: Calls by their last name.
FORBIDDEN_CALLS = {
    "system", "popen", "execv", "execve", "execvp", "spawnv", "startfile",
    "unpack_archive", "extractall",
    "literal_eval", "safe_eval", "read_magic", "read_array_header_1_0", "read_array_header_2_0",
}  # fmt: skip
#: Calls by their whole name.
FORBIDDEN_NAMES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "np.load",
    "numpy.load",
    "torch.jit.load",
    "pd.read_pickle",
    "torch.hub.load",
}


def nodes(kind):
    return [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kind)
    ]


def name_of(node):
    return (
        f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    )


def test_there_is_something_to_read():
    assert len(SOURCES) > 60


def test_no_module_that_runs_or_unpickles_is_imported():
    imported = {(path.name, alias.name) for path, node in nodes(ast.Import) for alias in node.names}
    imported |= {(path.name, node.module or "") for path, node in nodes(ast.ImportFrom)}
    assert [found for found in imported if found[1].partition(".")[0] in FORBIDDEN_MODULES] == []


def test_nothing_is_called_that_runs_or_unpickles():
    for path, call in nodes(ast.Call):
        name = name_of(call.func)
        assert name.rpartition(".")[2] not in FORBIDDEN_CALLS, (path, call.lineno)
        assert name not in FORBIDDEN_NAMES, (path, call.lineno)
        for keyword in call.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg not in ("allow_pickle", "trust_remote_code", "shell") or allowed, (
                path,
                call.lineno,
            )


def test_of_webdataset_only_the_pipeline_is_used():
    """Its URL handling (``pipe:`` runs a shell, braces expand) is in classes that are never made here."""
    used = {node.attr for _, node in nodes(ast.Attribute) if name_of(node.value) in ("webdataset", "wds")}
    assert used == {"DataPipeline"}
    imported = [
        node.module for _, node in nodes(ast.ImportFrom) if (node.module or "").startswith("webdataset")
    ]
    assert imported == []


def test_the_lint_rules_that_hold_this_are_on_everywhere():
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} <= {"S105", "S106", "S107"}
    for pattern, rules in lint["per-file-ignores"].items():
        assert pattern == "tests/**" or not any(rule.startswith("S") for rule in rules)
    assert [
        path for path in SOURCES if "noqa: S" in path.read_text() or "ruff: noqa" in path.read_text()
    ] == []


@pytest.mark.parametrize("name", ["pipe:touch evil", "http://localhost:1/a", "{000..999}.tar"])
def test_a_loader_takes_names_for_directories_and_nothing_else(name, tmp_path, monkeypatch):
    from llgbm_loader import StreamingLoader
    from llgbm_shards import LlgbmError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(LlgbmError):
        StreamingLoader(name, batch_size=1, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_code_that_a_tokenizer_brings_is_not_run(tmp_path):
    from support.commands import here
    from support.tiny_tokenizers import save_tiny
    from support.tiny_zoo import write_zoo

    write_zoo(tmp_path / "zoo", 2)
    evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    directory = save_tiny("bert", tmp_path / "tokenizer", **evil)
    marker = tmp_path / "evil"
    (directory / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    done = here(
        "build", tmp_path / "zoo", tmp_path / "out", "--text-tokenizer", directory, "--workers", 1, "-q"
    )
    assert done.code in (0, 2)
    assert not marker.exists()
    assert not (tmp_path / "out/tokenizer/evil.py").exists()
