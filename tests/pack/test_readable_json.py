"""What readers refuse for its size is not packed in the first place."""

from __future__ import annotations

import json
from pathlib import Path

from llgbm_pack import PackOptions, build
from llgbm_shards.shardset import ShardSet
from support.tiny_zoo import write_zoo


def test_a_checkpoint_with_more_texts_than_a_json_may_hold_is_skipped_by_name(tmp_path: Path) -> None:
    many, few = write_zoo(tmp_path / "zoo", 2)
    texts = {"prompts": ["a"] * 800_000, "answers": []}
    (tmp_path / "zoo" / many / "prompts.json").write_text(json.dumps(texts))
    report = build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", max_texts=None, workers=1))
    assert [skip.checkpoint for skip in report.skipped] == [many]
    assert "--max-texts" in report.skipped[0].reason
    assert report.exit_code == 1
    opened = ShardSet(tmp_path / "out")
    assert [opened.read_sample(key).json["checkpoint"] for key in opened.keys] == [few]
