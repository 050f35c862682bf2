"""Checkpoints with one fault each, and the words that name it."""

from __future__ import annotations

import json
import os
import shutil

import torch

from support.tiny_zoo import MODULES, random_pairs, write_adapter


def truncate(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def cut_header(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def empty(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_bytes(b"")


def noise(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 20)


def html(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").write_text("<!DOCTYPE html><p>404</p>" * 9)


def pickle(bad):
    write_adapter(bad, 9)
    (bad / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, bad / "adapter_model.bin")


def not_lora(bad):
    write_adapter(bad, 9)
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))


def half_a_pair(bad):
    tensors = random_pairs(9)
    del tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    write_adapter(bad, 9, tensors=tensors)


def with_value(value, count):
    def write(bad):
        tensors = random_pairs(9)
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].view(-1)[:count] = value
        write_adapter(bad, 9, tensors=tensors)

    return write


def other_dtype(bad):
    write_adapter(bad, 9, dtype="float32")


def other_rank(bad):
    write_adapter(bad, 9, rank=8)


def other_widths(bad):
    write_adapter(bad, 9, modules={**MODULES, "model.layers.0.self_attn.v_proj": (32, 32)})


def bad_config(bad):
    (write_adapter(bad, 9) / "adapter_config.json").write_text("{")


def bad_prompts(bad):
    (write_adapter(bad, 9) / "prompts.json").write_text('{"prompts": []}')


def config_alone(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").unlink()


def fifo(bad):
    (write_adapter(bad, 9) / "adapter_model.safetensors").unlink()
    os.mkfifo(bad / "adapter_model.safetensors")


def link_out(bad):
    file = write_adapter(bad, 9) / "adapter_model.safetensors"
    outside = bad.parents[2] / "outside.safetensors"
    shutil.move(file, outside)
    file.symlink_to(outside)


ONE_BAD = [
    (truncate, r"adapter_model\.safetensors"),
    (cut_header, r"adapter_model\.safetensors"),
    (empty, r"adapter_model\.safetensors"),
    (noise, r"adapter_model\.safetensors"),
    (html, r"adapter_model\.safetensors"),
    (pickle, r"adapter_model\.bin is a pickle, which is never opened"),
    (not_lora, r"peft_type.*IA3"),
    (half_a_pair, r"layers\.0\.self_attn\.v_proj.*lora_B"),
    (with_value(float("nan"), 3), r"layers\.1\.self_attn\.q_proj\.lora_A.*\b3\b"),
    (with_value(float("inf"), 1), r"layers\.1\.self_attn\.q_proj\.lora_A.*\b1\b"),
    (other_dtype, r"expected bfloat16, got float32.*--dtype"),
    (other_rank, r"expected 4, got 8.*--rank 8"),
    (other_widths, r"v_proj expected \(in, out\) \(32, 16\), got \(32, 32\)"),
    (bad_config, r"adapter_config\.json"),
    (bad_prompts, r"prompts\.json"),
    (config_alone, r"adapter_config\.json without adapter_model\.safetensors"),
    (fifo, r"a FIFO, not a regular file"),
    (link_out, r"a link out of the zoo"),
]
