"""The datasets that users know from LLGBM's dataset plumbing, over a raw zoo: no packing, no shard set.

For a first look at a zoo, and to compare with: a shard set of the same zoo gives equal tensors, much faster.

Their names, arguments, keys, shapes and dtypes are the known ones. What differs: checkpoints and deltas are joined
as a build joins them (never by substring or list position), a delta that is missing shows in ``has_delta``, the width of
zeros comes from the cache, and what is left out is listed with its reason.
"""

from llgbm_pack.raw.dataloader import create_dataloader
from llgbm_pack.raw.dataset import Text2Qwen25LoRA_DeltaDataset
from llgbm_pack.raw.wrappers import DeltaAugmentedDataset, DnDDatasetWithDelta, wrap_dnd_dataset

__all__ = [
    "DeltaAugmentedDataset",
    "DnDDatasetWithDelta",
    "Text2Qwen25LoRA_DeltaDataset",
    "create_dataloader",
    "wrap_dnd_dataset",
]
