"""The dataset card: README.md of a set, for people and for dataset hubs."""

from __future__ import annotations

from typing import Final

from llgbm_shards.record import CommitRecord

_CARD: Final = """\
---
{config}---
# A shard set of LoRA checkpoints

{samples} checkpoints, pre-tokenized by llgbm-pack: {tokens} tokens of {rank} x {chunk} {dtype} each, modules in
`{order}` order; members of a sample: {members}.

```python
from llgbm_loader import StreamingLoader

for batch in StreamingLoader("path/to/this/directory", batch_size=8):
    ...
```

The shards are plain tar files in WebDataset form, so these read them too:

```python
import webdataset

samples = webdataset.WebDataset("path/to/this/directory/{first}", shardshuffle=False)
```

```python
import datasets

rows = datasets.load_dataset("webdataset", data_files={{"train": "path/to/this/directory/train-*.tar"}},
                             split="train", streaming=True)
```

Check it with `llgbm-check path/to/this/directory`. The format is described in FORMAT.md of llgbm-pack.
"""


def dataset_card(record: CommitRecord) -> str:
    """The card's text; it names no path and no time."""
    splits = dict.fromkeys(shard.split for shard in record.shards)
    rows = [f"      - split: {split}\n        path: {split}-*.tar\n" for split in splits]
    config = "configs:\n  - config_name: default\n    data_files:\n" + "".join(rows)
    return _CARD.format(
        config=config,
        samples=sum(shard.samples for shard in record.shards),
        tokens=record.layout.num_tokens,
        rank=record.layout.rank,
        chunk=record.layout.chunk,
        dtype=record.layout.dtype,
        order=record.layout.token_order,
        members=", ".join(f"`{member}`" for member in record.members),
        first=record.shards[0].name if record.shards else "train-000000.tar",
    )
