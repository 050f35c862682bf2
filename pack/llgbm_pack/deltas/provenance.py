"""How deltas were measured, in words fit for a committed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from blake3 import blake3

from llgbm_shards.public import public_name

_NAMES: Final = {
    "base_model": ("base_model", "base_model_name", "base_model_name_or_path", "model_name", "model"),
    "probes": ("probes", "probe_texts", "probe_set", "num_probes"),
    "layer": ("layer", "layer_idx", "layer_index"),
    "dtype": ("dtype", "torch_dtype"),
}


def provenance(values: Mapping[str, Any]) -> dict[str, str]:
    """Base model, probes, layer and dtype as a manifest, or an entry of it, gives them; empty where it does not.

    Returns:
        Probes that are a list by their count and digest, other lists as JSON, of a path its last component.
    """
    facts = {field: first_text(values, names) for field, names in _NAMES.items()}
    probes = _first(values, _NAMES["probes"])
    if isinstance(probes, list):
        joined = "\0".join(map(str, probes)).encode(errors="surrogatepass")
        facts["probes"] = f"{len(probes)} texts, blake3 {blake3(joined).hexdigest()[:16]}"
    return facts


def first_text(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of some fields that is there, as text without a path of the machine it comes from."""
    value = _public(_first(values, names))
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _public(value: Any) -> Any:
    """A string may be a path of another machine, also within a list."""
    if isinstance(value, list):
        return [_public(item) for item in value]
    return value if isinstance(value, (int, float)) else public_name(value)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "", [], {})), "")
