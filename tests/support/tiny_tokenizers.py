"""Small text tokenizers of the kinds people use, trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = Path(__file__).parents[1] / "data" / "texts"

KINDS = ("bert", "qwen2", "t5", "llama", "byt5")


@cache
def small_texts() -> tuple[str, ...]:
    """All prompts and answers of tests/data/texts, and some texts that are hard on a tokenizer."""
    found = [item for file in sorted(TEXTS.glob("*.json")) for item in json.loads(file.read_text())]
    texts = [text for item in found for text in (item["prompt"], item.get("response", "")) if text]
    return (
        *texts,
        "",
        " ",
        "\n\n",
        "東京は\u3000日本の首都",
        "🙂👩‍👩‍👧",
        "e\u0301 ﬁ \u00a0x",
        "a" * 300,
        "[CLS] <s> </s",
    )


@cache
def tiny_tokenizer(kind: str) -> Any:
    """A tokenizer of one kind; shared, so do not change it."""
    if kind == "byt5":
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer()
    return {"bert": _bert, "qwen2": _qwen2, "t5": _t5, "llama": _llama}[kind]()


def save_tiny(kind: str, directory: Path, **changes: Any) -> Path:
    """Save a tokenizer of one kind, with settings changed, and return the directory."""
    tiny_tokenizer(kind).save_pretrained(str(directory))
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return directory


def _wrap(tokenizer: Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _template(tokenizer: Tokenizer, single: str, special: Sequence[str]) -> Any:
    return processors.TemplateProcessing(
        single=single, special_tokens=[(s, tokenizer.token_to_id(s)) for s in special]
    )


def _bert() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        small_texts(), trainers.WordPieceTrainer(vocab_size=800, special_tokens=special)
    )
    tokenizer.post_processor = _template(tokenizer, "[CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    return _wrap(
        tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _qwen2() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(small_texts(), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _wrap(tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def _t5() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(small_texts(), trainer)
    tokenizer.post_processor = _template(tokenizer, "$A </s>", ["</s>"])
    return _wrap(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _llama() -> Any:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = _sentencepiece()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, limit_alphabet=60)
    words = [word for text in small_texts() for word in text.split()]
    trained.train_from_iterator(words, trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(state["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _sentencepiece()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = _template(tokenizer, "<s> $A", ["<s>"])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _sentencepiece() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
