"""Models of the demo zoo: a tiny base model, a small text tokenizer, LoRA training deltas."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from llgbm_shards.errors import StorageError

#: The name that adapters and deltas carry; a name, not a place: no hub has it.
BASE_MODEL_NAME: Final = "demo/qwen2-tiny"
HIDDEN_SIZE: Final = 64
_VOCABULARY: Final = 512
_BASE_SEED: Final = 20240
_SPECIAL: Final = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """How one adapter is trained."""

    rank: int = 8  # LoRA rank r
    alpha: int = 16  # LoRA alpha
    steps: int = 16  # of AdamW
    batch: int = 8  # texts a step
    learning_rate: float = 5e-3
    seed: int = 0  # of the initialisation of A and of the order of texts


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeds torch and takes one thread; both are as before afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)  # float sums depend on the count of threads
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def demo_base_model() -> Any:
    """The base model of the demo zoo: a randomly initialised Qwen2 in float32, the same at every call, in eval mode.

    Widths 64 (hidden, q, o), 32 (k, v) and 160 (gate, up): their greatest common divisor is 32.
    """
    config = Qwen2Config(
        vocab_size=_VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with _reproducible(_BASE_SEED):
        model = Qwen2ForCausalLM(config)
    # PEFT writes this name into adapter_config.json.
    model.name_or_path = BASE_MODEL_NAME
    model.config._name_or_path = BASE_MODEL_NAME
    return model.eval()


def train_tokenizer(texts: Sequence[str]) -> Any:
    """Trains a byte-level BPE tokenizer that puts ``<s>`` before each text; it has pad, unk, bos and eos tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        show_progress=False,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = _SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, padding_side="right", **_SPECIAL
    )


def train_adapter(base: Any, tokenizer: Any, texts: Sequence[str], options: TrainingOptions) -> Any:
    """Trains one LoRA adapter on a copy of the base model, which is not touched.

    ``texts`` are prompts joined with their answers. The weights of the adapter, of a ``peft.PeftModel`` in eval mode,
    are float32 but rounded to bfloat16.
    """
    peft = load_peft()
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=list(_PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    with _reproducible(options.seed), warnings.catch_warnings():
        # PEFT calls names that newer versions of transformers deprecate.
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(copy.deepcopy(base), config)
        _fit(model, tokenizer, texts, options)
    for parameter in _adapter_parameters(model):
        # The delta must be that of the weights on disk, which are bfloat16.
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return model.eval()


def save_adapter(model: Any, directory: Path) -> None:
    """Saves an adapter through PEFT in bfloat16, which its weights in memory are afterwards too."""
    for parameter in _adapter_parameters(model):
        parameter.data = parameter.data.to(torch.bfloat16)
    # "auto" would ask the hub whether the base model's vocabulary has grown.
    model.save_pretrained(str(directory), save_embedding_layers=False)


def probe_activation(model: Any, tokenizer: Any, probes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean over the probes of the last hidden state at the last token, (hidden,) float32."""
    batch = _tokenize(tokenizer, probes)
    last = batch["attention_mask"].sum(dim=1) - 1
    with _reproducible(0), torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1]
        mean = hidden[torch.arange(len(probes)), last].double().mean(dim=0)
    result: npt.NDArray[np.float32] = mean.float().numpy()
    return result


def load_peft() -> Any:
    """Imports PEFT, or says how to install it."""
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise StorageError(
            "the demo zoo is made with PEFT, which is not installed",
            where="demo",
            got=str(error),
            do="Install it: pip install 'llgbm-pack[demo]'",
        ) from error


def _fit(model: Any, tokenizer: Any, texts: Sequence[str], options: TrainingOptions) -> None:
    order = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(_adapter_parameters(model), lr=options.learning_rate)
    model.train()
    for _ in range(options.steps):
        chosen = torch.randperm(len(texts), generator=order)[: options.batch].tolist()
        batch = _tokenize(tokenizer, [texts[index] + tokenizer.eos_token for index in chosen])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def _adapter_parameters(model: Any) -> list[torch.nn.Parameter]:
    return [weight for name, weight in model.named_parameters() if "lora_" in name]
