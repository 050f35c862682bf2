"""The options of the loader and the dataset: each argument of a constructor has its place in one of them."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_loader.options import ReadOptions, SelectOptions, StreamOptions


@pytest.mark.parametrize(
    ("view", "kinds", "others"),
    [
        (StreamingLoader, (SelectOptions, ReadOptions, StreamOptions), {"device"}),
        (ShardDataset, (SelectOptions, ReadOptions), set()),
    ],
)
def test_each_argument_is_an_option(view, kinds, others):
    options = {option.name for kind in kinds for option in dataclasses.fields(kind)} - {"paths", "overlays"}
    assert set(inspect.signature(view).parameters) == options | others | {"path", "overlay"}
