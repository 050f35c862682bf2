"""Tokens equal those that Drag-and-Drop-LLMs' own tokenizers gave for real-shaped adapters.

tests/data/golden holds some modules of each; the whole files are tested where ../shared/golden is present.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llgbm_pack.tokenize.lora_tokenizer import LoraTokenizer2D

HERE = Path(__file__).resolve()
SMALL = HERE.parents[1] / "data" / "golden"
WHOLE = HERE.parents[3] / "shared" / "golden"
NAMES = ["qwen2.5-0.5b-bf16", "qwen2.5-1.5b-bf16", "qwen2.5-0.5b-fp32"]
CHUNK = {"qwen2.5-0.5b-bf16": 128, "qwen2.5-1.5b-bf16": 256, "qwen2.5-0.5b-fp32": 128}


@pytest.mark.parametrize("order", ["sorted", "dnd"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("root", [SMALL, WHOLE], ids=["part", "whole"])
def test_tokens_equal_golden(root, name, order):
    directory = root / name
    if root == WHOLE and not directory.exists():
        pytest.skip(f"{directory} is not there")
    weights = load_file(directory / "adapter_model.safetensors")
    wanted = load_file(directory / "expected_tokens.safetensors")[f"tokens.{order}"]
    tokenizer = LoraTokenizer2D(order=order)
    tokens, scales = tokenizer.tokenize(weights)
    assert tokenizer.layout(weights).chunk == CHUNK[name]
    assert (tokens.dtype, scales.dtype) == (torch.float32, torch.float32)
    if name.endswith("bf16"):
        assert torch.equal(tokens.view(torch.int32), wanted.float().view(torch.int32))
    else:
        torch.testing.assert_close(tokens, wanted, rtol=0, atol=5e-7)
    back = tokenizer.detokenize(tokens, scales, like=weights)
    assert list(back) == list(weights)
    # 16 bits: one unit in the last place, for the roundings of difference, quotient and result.
    unit = 2.0**-7 if name.endswith("bf16") else 2e-6
    for key, tensor in weights.items():
        assert (back[key] - tensor).abs().max() <= unit * tensor.abs().max()
