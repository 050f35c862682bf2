"""Adapters that PEFT writes and that cannot be packed: each with its reason, tensor or config key."""

from __future__ import annotations

import json

import pytest
import torch

from llgbm_pack.sources.adapter import read_adapter
from llgbm_shards.errors import CheckpointError
from support.peft_files import Q, change_config, lora, nameless_base, pair_of, read, save, write


@pytest.fixture(scope="module")
def base():
    return nameless_base()


# --- refused: what PEFT writes


def _conv():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 8, 3)

    return Net()


def _mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    return MixtralForCausalLM(config)


REFUSED = {
    "dora": ({"use_dora": True}, r"q_proj\.lora_magnitude_vector: DoRA"),
    "modules_to_save": (
        {"modules_to_save": ["norm"]},
        r"norm\.weight: a whole tensor.*modules_to_save",
    ),
    "modules_to_save lm_head": (
        {"modules_to_save": ["lm_head"]},
        r"lm_head\.weight: it holds an embedding or lm_head",
    ),
    "embedding": (
        {"target_modules": ["q_proj", "embed_tokens"]},
        r"embed_tokens\.lora_embedding_A: .*embedding",
    ),
    "lm_head": ({"target_modules": ["q_proj", "lm_head"]}, r"lm_head\.lora_A\.weight: .*output layer"),
    "bias all": ({"bias": "all"}, r"\.bias: it trains biases"),
    "bias lora_only": ({"bias": "lora_only"}, r"\.bias: it trains biases"),
    "lora_bias": ({"lora_bias": True}, r"lora_B\.bias: it trains biases"),
    "trainable tokens": (
        {"trainable_token_indices": [1, 2]},
        r"trainable_tokens_delta: it trains token embeddings",
    ),
    "pissa": ({"init_lora_weights": "pissa"}, r"init_lora_weights: .*changes the base model.*'pissa'"),
    "pissa niter": ({"init_lora_weights": "pissa_niter_2"}, r"changes the base model.*'pissa_niter_2'"),
    "olora": ({"init_lora_weights": "olora"}, r"init_lora_weights: .*changes the base model.*'olora'"),
    "layer replication": ({"layer_replication": [(0, 2), (1, 2)]}, r"layer_replication: it repeats layers"),
    "alora": (
        {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
        r"alora_invocation_tokens: activated LoRA",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_peft_writes(case, base, tmp_path):
    options, message = REFUSED[case]
    save(base, tmp_path, lora(**options))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["AdaLora", "LoHa", "IA3"])
def test_refuses_other_peft_types(kind, base, tmp_path):
    import peft

    options = {"AdaLora": {"total_step": 10}, "LoHa": {}, "IA3": {"feedforward_modules": []}}[kind]
    save(base, tmp_path, getattr(peft, f"{kind}Config")(target_modules=["q_proj"], **options))
    with pytest.raises(
        CheckpointError, match=rf"peft_type: not a LoRA adapter: expected LORA, got '{kind.upper()}'"
    ):
        read(tmp_path)
    # and by its tensors, when the config is lost
    with pytest.raises(
        CheckpointError, match=r"self_attn\.q_proj\.(lora_E|hada_w1_a|ia3_l): (AdaLoRA|not a LoRA)"
    ):
        read_adapter(tmp_path / "adapter_model.safetensors", None, alpha=1)


def test_refuses_expert_parameters(tmp_path):
    options = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    save(_mixtral(), tmp_path, lora(**options))
    with pytest.raises(
        CheckpointError, match=r"experts(\.base_layer)?\.lora_A\.weight: it adapts MoE expert"
    ):
        read(tmp_path)
    save(_mixtral(), tmp_path, lora())
    change_config(tmp_path, **options)
    with pytest.raises(CheckpointError, match="target_parameters: it adapts bare parameters"):
        read(tmp_path)


def test_refuses_convolutions(tmp_path):
    save(_conv(), tmp_path, lora(target_modules=["conv"]))
    with pytest.raises(
        CheckpointError, match=r"conv\.lora_A\.weight: it adapts a convolution.*\(8, 4, 3, 3\)"
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", ["KasaConfig", "MontecloraConfig"])
def test_refuses_variants_with_more_tensors(name, base, tmp_path):
    import peft

    if not hasattr(peft, name):
        pytest.skip(f"this PEFT has no {name}")
    save(base, tmp_path, lora(**{name.replace("Config", "_config").lower(): getattr(peft, name)()}))
    with pytest.raises(CheckpointError, match=r"\.lora_(diag|monteclora_sampler\.\S+): unknown LoRA variant"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # PEFT makes these only beside quantized models or with packages that are not here.
        ("init_lora_weights", "loftq", "changes the base model"),
        ("init_lora_weights", "corda", "changes the base model"),
        ("init_lora_weights", "lora_ga", "changes the base model"),
        ("init_lora_weights", "brand_new", "unknown initialisation"),
        ("init_lora_weights", 7, "unknown initialisation"),
        ("use_qalora", True, "QALoRA"),
        ("use_bdlora", {"nblocks": 2}, "BD-LoRA"),
        ("arrow_config", {"top_k": 3}, "Arrow"),
        ("modules_to_save", ["score"], "modules_to_save"),
        ("use_dora", True, "DoRA"),
        ("bias", "all", "biases"),
        ("peft_type", "VERA", "not a LoRA adapter: expected LORA, got 'VERA'"),
        ("peft_type", None, "not a LoRA adapter"),
        ("lora_alpha", "16", "not an alpha"),
        ("lora_alpha", True, "not an alpha"),
        ("lora_alpha", 10**400, "not an alpha"),
        ("r", -8, "not a rank"),
        ("use_rslora", "yes", "not a flag"),
        ("lora_dropout", "0.1", "not a dropout"),
        ("lora_dropout", -0.1, "not a dropout"),
        ("lora_dropout", 2, "not a dropout"),
        ("lora_dropout", True, "not a dropout"),
        ("task_type", ["CAUSAL_LM"], "not a task type"),
        ("task_type", "/home/me/task", "not a task type"),
        ("alpha_pattern", ["q_proj"], "not an object"),
        ("alpha_pattern", {"q_proj": "much"}, "not an alpha"),
        ("alpha_pattern", {"q_(proj": 4}, "not a regular expression"),
        ("alpha_pattern", {"(a+)+b": 4}, "pattern too complex"),
        ("alpha_pattern", {".*.*.*.*.*x": 4}, "pattern too complex"),
        ("alpha_pattern", {"(.|.|.){1,40}(.|.){1,40}x": 4}, "pattern too complex"),
        ("alpha_pattern", {"((.|.))*x": 4}, "pattern too complex"),
        ("alpha_pattern", {"(?:.|.)*x": 4}, "pattern too complex"),
        ("alpha_pattern", {"(.|.)" * 30 + "x": 4}, "pattern too complex"),
        ("alpha_pattern", {".?" * 30 + "." * 30 + "x": 4}, "pattern too complex"),
        ("alpha_pattern", {"a{99999999999}": 4}, "not a regular expression"),
        ("rank_pattern", {"q_proj": 2.5}, "not a rank"),
    ],
)
def test_refuses_by_config_key(key, value, message, base, tmp_path):
    save(base, tmp_path, lora())
    change_config(tmp_path, **{key: value})
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path)
    assert caught.value.where.startswith(f"adapter_config.json: {key}")


def test_refuses_a_config_whose_rank_is_not_the_tensors(base, tmp_path):
    save(base, tmp_path, lora(r=8))
    change_config(tmp_path, r=16)
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_A\.weight: rank .* expected 16 .* got 8"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"peft_type": "LORA", "lora_alpha": 1, "lora_alpha": 2}', "duplicate key 'lora_alpha'"),
        (b"[1]", "not an object"),
        (b"{not json", "not valid JSON"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "too large"),
        (b"\xff\xfe{}", "not valid JSON"),
    ],
)
def test_refuses_hostile_configs(text, message, tmp_path):
    weights = write(tmp_path / "adapter_model.safetensors", pair_of(Q))
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path)
    assert caught.value.where.startswith("adapter_config.json")
    assert read_adapter(weights, None, alpha=1).rank == 4, "the weights are sound"


@pytest.mark.parametrize(
    ("pattern", "means_it"),
    [
        ("q_proj", True),
        (r".*layers\.(" + "|".join(map(str, range(36))) + r")\.self_attn\.(q_proj|v_proj)", True),
        (r"model\.layers\.[0-9]+\.self_attn\.[qkvo]_proj", True),
        (r"layers\.(\d)+\.(?:self_attn|mlp)\.\w+", True),
        ("^q_proj", False),
        ("attn.q_proj", False),
    ],
)
def test_patterns_people_write_are_taken(tmp_path, pattern, means_it):
    write(tmp_path / "adapter_model.safetensors", pair_of(f"base_model.model.{Q}"))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(tmp_path).pairs[Q].scaling == (1 if means_it else 2)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("pattern", [".*.*.*x", "(.|.)" * 17 + "x", "(.|.)(.|.).*.*x"])
def test_the_worst_patterns_that_are_taken_end_soon(tmp_path, pattern):
    name = "a." * 128
    write(tmp_path / "adapter_model.safetensors", pair_of(name))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {pattern: 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(tmp_path).pairs[name].scaling == 2
    write(tmp_path / "adapter_model.safetensors", pair_of(name + "a"))
    with pytest.raises(CheckpointError, match="name too long for patterns"):
        read(tmp_path)
