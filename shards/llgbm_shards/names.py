"""What the files of a set and its texts are called, and the forms that names and digests have."""

from __future__ import annotations

import re
from typing import Final

#: The commit record.
RECORD_NAME: Final = "shardset.json"
INDEX_NAME: Final = "index.parquet"
#: Checkpoints that were not packed, with the reasons.
SKIPPED_NAME: Final = "skipped.json"
#: The dataset card; the record does not list it.
CARD_NAME: Final = "README.md"
#: Directory whose every file is the record's business: another file there changes how texts are tokenized.
TOKENIZER_DIRECTORY: Final = "tokenizer"
#: Directory of an unfinished set: locks, plan, records of finished shards.
PACK_DIRECTORY: Final = ".pack"
PLAN_NAME: Final = "plan.json"
#: Prefix of unfinished files; nothing with this prefix belongs to a set.
TEMPORARY: Final = ".tmp-"

#: A shard's name by the format: SPLIT-NNNNNN.tar.
SHARD: Final = re.compile(r"[a-z]{1,32}-[0-9]{6,9}\.tar")
#: Names a build gives to shards: only these may be taken for its own, and replaced.
BUILT_SHARD: Final = re.compile(r"(train|val)-[0-9]+\.tar")
#: Name of a parity file, that of its shard but for the suffix; and those that a build gives.
PARITY: Final = re.compile(r"[a-z]{1,32}-[0-9]{6,9}\.parity")
BUILT_PARITY: Final = re.compile(r"(train|val)-[0-9]+\.parity")
#: The most groups of samples that the parity of a shard may have.
MOST_PARITY: Final = 1024
#: A BLAKE3-256 digest.
DIGEST: Final = re.compile(r"[0-9a-f]{64}")

#: Forms of a text, in the order of the members of a set.
FORMS: Final = ("prompt", "answer", "prompt_answer")


def parity_name(shard: str) -> str:
    """What the parity file of a shard is called."""
    return f"{shard.removesuffix('.tar')}.parity"
