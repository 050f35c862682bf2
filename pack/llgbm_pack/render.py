"""Results as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from llgbm_pack.jobs import Note
from llgbm_pack.plan import Plan
from llgbm_pack.report import PackReport
from llgbm_pack.sizes import human_bytes
from llgbm_pack.survey import Skip
from llgbm_shards.findings import CheckReport

_FEW: Final = 20


def render_plan(plan: Plan) -> str:
    """What ``--dry-run`` prints."""
    layout = plan.context.layout
    lines = [
        f"found      {plan.found} checkpoints, {plan.samples} to pack, {len(plan.skipped)} skipped, {plan.excluded} excluded",
        f"tokens     {layout.num_tokens} of {layout.rank} x {layout.chunk} {layout.dtype} each, {len(layout.modules)} modules",
        f"members    {', '.join(plan.context.members)}",
        f"texts      {_counts(plan.text_sources)}",
        f"deltas     {_counts(plan.to_json()['matched_by']) or 'none'}",
        f"shards     {len(plan.jobs)}, about {human_bytes(plan.estimated_bytes)} (texts and json estimated)",
    ]
    return "\n".join([*lines, *_skips(plan.skipped, all_of_them=True), *_notes(plan.notes, all_of_them=True)])


def render_pack(report: PackReport, *, verbose: bool) -> str:
    """What ``build`` prints at its end."""
    rate = report.source_bytes / report.seconds if report.seconds else 0
    resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    lines = [
        f"packed     {report.packed} of {report.found} checkpoints{resumed}, {report.num_tokens} tokens each",
        f"skipped    {len(report.skipped)}, {sum(skip.fault for skip in report.skipped)} of them for a fault",
        f"deltas     {_counts(report.matched_by) or 'none'}",
        f"texts      {_counts(report.text_sources)}"
        + (f"; {report.fallbacks} missing answers, prompt used" if report.fallbacks else ""),
        f"shards     {report.shards}, {human_bytes(report.set_bytes)}, in {report.out}",
        f"rate       {human_bytes(report.source_bytes)} of weights in {report.seconds:.1f} s, {human_bytes(rate)}/s",
        f"digest     {report.digest or 'not committed: --strict, and something was skipped or warned about'}",
    ]
    lines += [f"equal      {', '.join(group)}" for group in report.duplicates[: None if verbose else _FEW]]
    return "\n".join(
        [*lines, *_skips(report.skipped, all_of_them=verbose), *_notes(report.notes, all_of_them=verbose)]
    )


def render_check(report: CheckReport) -> str:
    """What ``check`` prints: every finding, then the verdict."""
    lines = []
    for finding in report.findings:
        place = " ".join(part for part in (finding.shard, finding.key, finding.member) if part)
        lines.append(f"{finding.kind}  {place}: {finding.what}")
    what = f"{report.samples} samples in {report.shards} shards, {report.level} check"
    if report.level == "full":
        what += f", {human_bytes(report.bytes_read)} in {report.seconds:.1f} s"
    verdict = "sound" if report.sound else f"NOT SOUND, {len(report.findings)} findings"
    lines.append(f"{report.path}: {verdict} ({what})")
    if report.digest:
        lines.append(f"digest {report.digest}")
    return "\n".join(lines)


def render_set(found: dict[str, Any]) -> str:
    """What ``inspect OUT`` prints."""
    tokens = found["tokens"]
    lines = [
        f"set        {found['path']}",
        f"digest     {found['digest']}",
        f"samples    {found['samples']} ({_counts(found['splits'])}), {found['with_delta']} with a delta",
        f"tokens     {tokens['count']} of {tokens['rank']} x {tokens['chunk']} {tokens['dtype']}, {tokens['order']} order, "
        f"{tokens['modules']} modules",
        f"members    {', '.join(found['members'])}",
        f"forms      {', '.join(found['forms']) or 'none'}",
        f"tasks      {_counts(found['tasks'])}",
        f"models     {_counts(found['base_models'])}",
        f"shards     {found['shards']}, {human_bytes(found['bytes'])}",
        f"keys       {', '.join(found['keys'])}{', ...' if found['samples'] > len(found['keys']) else ''}",
    ]
    return "\n".join(lines)


def render_sample(found: dict[str, Any]) -> str:
    """What ``inspect OUT KEY`` prints."""
    info = found["json"]
    lines = [
        f"key        {found['key']}",
        f"checkpoint {info['checkpoint']} (task {info['task']}, base {info['base_model'] or 'unknown'})",
        f"lora       rank {info['rank']}, alpha {info['alpha']:g}, scaling {info['scaling']:g}, {info['source_dtype']}",
        f"place      {found['shard']} at byte {found['offset']}, split {found['split']}",
    ]
    delta = info["delta"]
    lines.append(
        f"delta      {delta['file']}, norm {delta['norm']:.4g}, matched by {delta['matched_by']}"
        if info["has_delta"]
        else "delta      none"
    )
    for member in found["members"]:
        lines.append(f"member     {member['name']:<18} {member['size']:>12} bytes  {member['digest']}")
    lines += [f"tensor     {name:<18} {shape}" for name, shape in found["shapes"].items()]
    lines += [f"text {number:<5} {text['prompt']!r:.90}" for number, text in enumerate(info["texts"][:3])]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name or '(unknown)'}" for name, count in counts.items())


def _skips(skipped: Sequence[Skip], *, all_of_them: bool) -> list[str]:
    rows = [f"skipped    {skip.checkpoint}: {skip.reason}" for skip in skipped]
    return _shorten(rows, "skipped", all_of_them)


def _notes(notes: Iterable[Note], *, all_of_them: bool) -> list[str]:
    rows = [f"warning    {note.checkpoint}{': ' if note.checkpoint else ''}{note.what}" for note in notes]
    return _shorten(rows, "warnings", all_of_them)


def _shorten(rows: list[str], what: str, all_of_them: bool) -> list[str]:
    if all_of_them or len(rows) <= _FEW:
        return rows
    return [*rows[:_FEW], f"... and {len(rows) - _FEW} more {what} (-v lists all; skipped.json keeps them)"]
