"""Results as text for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from llgbm_pack.cli.output import human_bytes
from llgbm_pack.packing.report import PackReport
from llgbm_pack.plan.plan import Plan
from llgbm_pack.plan.same_reason import grouped, one_line
from llgbm_pack.plan.values import Note, Skip
from llgbm_shards.names import RECORD_NAME

if TYPE_CHECKING:
    from llgbm_pack.cli.check import Checked
    from llgbm_pack.look.bench import BenchReport
    from llgbm_pack.look.stats import StatsReport
    from llgbm_pack.packing.overlay import OverlayReport
    from llgbm_pack.upkeep.repair import RepairReport
    from llgbm_shards.findings import CheckReport

_FEW: Final = 20
_ADVICE: Final = {
    "storage": "storage must deliver {factor:.1f} times as much: a local NVMe copy, or shards that stay in the page cache",
    "cpu": "{factor:.1f} times the CPU rate is needed: more cores, more --readers, "
    "or in your loader verify='first-epoch' or frame='none'",
}


def render_plan(plan: Plan, *, verbose: bool) -> str:
    """What ``--dry-run`` prints."""
    layout = plan.context.layout
    lines = [
        f"found      {plan.found} checkpoints, {plan.samples} to pack, {len(plan.skipped)} skipped, {plan.excluded} excluded",
        f"tokens     {layout.num_tokens} of {layout.rank} x {layout.chunk} {layout.dtype} each, {len(layout.modules)} modules",
        f"members    {', '.join(plan.context.members)}",
        f"texts      {_counts(plan.text_sources)}",
        f"deltas     {_counts(plan.to_json()['matched_by']) or 'none'}",
        f"splits     {_counts(plan.splits)}",
        f"shards     {len(plan.jobs)}, about {human_bytes(plan.estimated_bytes)} (texts and json estimated)"
        + (", parity included" if plan.context.parity else ""),
    ]
    lines += _ignored(plan.ignored, verbose)
    return "\n".join([*lines, *_skips(plan.skipped, verbose), *_notes(plan.notes, verbose)])


def render_pack(report: PackReport, *, verbose: bool) -> str:
    """What ``build`` prints at its end."""
    resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    lines = [
        f"packed     {report.packed} of {report.found} checkpoints{resumed}, {report.num_tokens} tokens each",
        f"skipped    {len(report.skipped)}, {sum(skip.fault for skip in report.skipped)} of them for a fault",
        f"deltas     {_counts(report.matched_by) or 'none'}",
        f"texts      {_counts(report.text_sources)}"
        + (f"; {report.fallbacks} missing answers, prompt used" if report.fallbacks else ""),
        f"splits     {_counts(report.splits) or 'none'}",
        f"shards     {report.shards}, {human_bytes(report.set_bytes)}"
        + (f" and {human_bytes(report.parity_bytes)} of parity" if report.parity_bytes else "")
        + f", in {report.out}",
        f"rate       {_rate(report)}",
        f"digest     {report.digest or 'not committed: --strict, and something was skipped or warned about'}",
    ]
    lines += _ignored(report.ignored, verbose)
    lines += [f"equal      {', '.join(group)}" for group in report.duplicates[: None if verbose else _FEW]]
    lines += _shorten(_skips(report.skipped, verbose), "skipped", verbose)
    return "\n".join([*lines, *_shorten(_notes(report.notes, verbose), "warnings", verbose)])


def render_overlay(report: OverlayReport, *, verbose: bool) -> str:
    """What ``overlay`` prints at its end."""
    resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    fallbacks = f"; {report.fallbacks} missing answers, prompt used" if report.fallbacks else ""
    lines = [
        f"base       {report.base}",
        f"packed     {report.samples} samples{resumed}: {', '.join(report.members)}",
        f"deltas     {report.with_delta}, joined by: {_counts(report.matched_by) or 'none'}",
        f"texts      {_counts(report.text_sources) or 'none'}{fallbacks}",
        f"shards     {report.shards}, {human_bytes(report.set_bytes)}, in {report.out}",
        f"time       {report.seconds:.1f} s, {report.packing_seconds:.1f} s of them packing",
        f"digest     {report.digest or 'not committed: --strict, and something was warned about'}",
    ]
    return "\n".join([*lines, *_shorten(_notes(report.notes, verbose), "warnings", verbose)])


def _rate(report: PackReport) -> str:
    """The rate of packing, and the whole time beside it: imports and the plan are no part of a rate."""
    if not report.source_bytes:
        return f"nothing read in this run; {report.seconds:.1f} s in all"
    rate = report.source_bytes / max(report.packing_seconds, 1e-3)
    packing = f"{human_bytes(report.source_bytes)} of weights in {report.packing_seconds:.1f} s"
    return f"{human_bytes(rate)}/s ({packing}; {report.seconds:.1f} s in all)"


def render_check(checked: Checked, *, verbose: bool) -> str:
    """What ``check`` prints: every finding, then the verdict."""
    report = checked.report
    lines = []
    for shard, findings in groupby(report.findings, key=lambda finding: finding.shard):
        rows = []
        for finding in findings:
            place = " ".join(part for part in (shard, finding.key, finding.member) if part)
            rows.append(f"{finding.kind}  {place}: {finding.what}")
        lines += _shorten(rows, f"findings in {shard}", verbose, do="-v lists all")
    what = f"{report.samples} samples in {report.shards} shards, {report.level} check"
    if report.level != "quick":
        what += f", {human_bytes(report.bytes_read)} in {report.seconds:.1f} s"
    if report.sample < 1:
        what += (
            f", {report.samples_read} of the samples read: {report.sample:.3g} of them, seed {report.seed}"
        )
    verdict = "sound" if report.sound else "NOT SOUND"
    if report.findings:
        verdict += f", {len(report.findings)} findings"
    lines.append(f"{report.path}: {verdict} ({what})")
    if report.digest:
        lines.append(f"digest {report.digest}")
    if _repairable(report):
        source = "--base BASE" if report.base else "--zoo ZOO"
        command = f"llgbm-pack repair {shlex.quote(report.path)} {source}"
        lines.append(f"`{command}` puts back what is missing or damaged, to the bit")
        if not report.base:
            lines.append(
                "(of a set built with --parity one lost sample of each group comes back without --zoo)"
            )
    return "\n".join([*lines, *_against(checked, verbose=verbose)])


def _repairable(report: CheckReport) -> bool:
    """Whether files that the commit record lists are damaged: without a record there may be no set, or an unfinished one."""
    damaged = {finding.shard for finding in report.findings if finding.kind == "damage"}
    return bool(report.digest and damaged - {RECORD_NAME})


def _against(checked: Checked, *, verbose: bool) -> list[str]:
    """The comparison with a zoo."""
    zoo = checked.against
    if zoo is None:
        return [f"zoo not compared: {checked.problem}"] if checked.problem else []
    changed = [f"{change.checkpoint}: {change.what}" for change in zoo.changed]
    lines: list[str] = []
    for word, rows in (("new", zoo.new), ("changed", changed), ("gone", zoo.gone)):
        lines += _shorten([f"{word:<8} {row}" for row in rows], word, verbose, do="-v lists all")
    return [
        *lines,
        *(f"not judged  {what}" for what in zoo.unjudged),
        f"{zoo.zoo}: {zoo.unchanged} unchanged, {len(zoo.new)} new, {len(changed)} changed, {len(zoo.gone)} gone, "
        f"{zoo.skipped} skipped by the build",
    ]


def render_stats(report: StatsReport) -> str:
    """What ``stats`` prints."""
    head = f"{report.file}: {', '.join(report.tensors)} over {report.samples} samples"
    return "\n".join([head, *(f"{name}: NaN, for no two samples differ" for name in report.undefined)])


def render_repair(report: RepairReport) -> str:
    """What ``repair`` prints."""
    lines = [f"restored   {name}" for name in report.restored]
    lines += [f"refused    {refusal.name}: {refusal.reason}" for refusal in report.refused]
    lines += [f"left       {finding.shard}: {finding.what}; remove it by hand" for finding in report.left]
    verdict = "NOT SOUND" if report.exit_code else "sound"
    lines = lines or ["nothing to repair"]
    lines += [f"{report.out}: {verdict} ({report.seconds:.1f} s)", f"digest {report.digest or 'lost'}"]
    return "\n".join(lines)


def render_set(summary: dict[str, Any]) -> str:
    """What ``inspect OUT`` prints."""
    tokens = summary["tokens"]
    lines = [
        f"set        {summary['path']}",
        f"digest     {summary['digest']}",
        *([f"base       {summary['base']}"] if summary["base"] else []),
        f"samples    {summary['samples']} ({_counts(summary['splits'])}), {summary['with_delta']} with a delta",
        f"tokens     {tokens['count']} of {tokens['rank']} x {tokens['chunk']} {tokens['dtype']}, {tokens['order']} order, "
        f"{tokens['modules']} modules",
        f"members    {', '.join(summary['members'])}",
        f"forms      {', '.join(summary['forms']) or 'none'}",
        f"tasks      {_counts(summary['tasks'])}",
        f"models     {_counts(summary['base_models'])}",
        f"shards     {summary['shards']}, {human_bytes(summary['bytes'])}",
        f"parity     {_parity(summary['parity'])}",
        f"keys       {', '.join(summary['keys'])}{', ...' if summary['samples'] > len(summary['keys']) else ''}",
    ]
    return "\n".join(lines)


def _parity(parity: dict[str, int]) -> str:
    if not parity["groups"]:
        return "none"
    return f"one sample of each of {parity['groups']} groups a shard, {human_bytes(parity['bytes'])}"


def render_sample(sample: dict[str, Any]) -> str:
    """What ``inspect OUT KEY`` prints."""
    info = sample["json"]
    lines = [
        f"key        {sample['key']}",
        f"checkpoint {info['checkpoint']} (task {info['task']}, base {info['base_model'] or 'unknown'})",
        f"lora       rank {info['rank']}, alpha {info['alpha']:g}, scaling {info['scaling']:g}, {info['source_dtype']}",
        f"place      {sample['shard']} at byte {sample['offset']}, split {sample['split']}",
    ]
    delta = "none"
    if info["has_delta"]:
        delta = "{file}, norm {norm:.4g}, matched by {matched_by}".format_map(info["delta"])
    lines.append(f"delta      {delta}")
    for member in sample["members"]:
        lines.append(f"member     {member['name']:<18} {member['size']:>12} bytes  {member['digest']}")
    lines += [f"tensor     {name:<18} {shape}" for name, shape in sample["shapes"].items()]
    lines += [f"text {number:<5} {text['prompt']!r:.90}" for number, text in enumerate(info["texts"][:3])]
    return "\n".join(lines)


def render_bench(report: BenchReport) -> str:
    """What ``bench`` prints."""
    size = report.sample_bytes
    lines = [f"{key:<15} {shape}" for key, shape in report.batch.items()]
    for name, rate in (
        ("plain reads", report.storage_rate),
        ("loader, cold", report.cold_rate),
        ("loader, warm", report.warm_rate),
    ):
        lines.append(f"{name:<15} {rate:.1f} samples/s, {human_bytes(rate * size)}/s")
    lines.append(f"limit           {'storage' if report.limit == 'storage' else 'CPU: decode, verify, copy'}")
    needed, got = report.needed_rate, report.cold_rate
    lines.append(
        f"step            {report.step_ms:g} ms x {report.batch_size} rows takes {needed:.1f} samples/s: {_verdict(needed, got)}"
    )
    if got < needed:
        lines.append(f"advice          {_ADVICE[report.limit].format(factor=needed / got)}")
    return "\n".join(lines)


def _verdict(needed: float, got: float) -> str:
    return f"fed, {got / needed:.1f} times over" if got >= needed else f"not fed, {got / needed:.0%} of it"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name or '(unknown)'}" for name, count in counts.items())


def _ignored(folders: Sequence[str], verbose: bool) -> list[str]:
    """Folders that the walk did not enter: adapters in them would be missed."""
    if not folders:
        return []
    shown = folders if verbose else folders[:3]
    return [
        f"ignored    {len(folders)} hidden or tmp- folders: {', '.join(shown)}{', ...' * (len(shown) < len(folders))}"
    ]


def _skips(skipped: Sequence[Skip], verbose: bool) -> list[str]:
    return _reasons("skipped", ((skip.checkpoint, skip.reason) for skip in skipped), verbose)


def _notes(notes: Sequence[Note], verbose: bool) -> list[str]:
    return _reasons("warning", ((note.checkpoint, note.what) for note in notes), verbose)


def _reasons(word: str, rows: Iterable[tuple[str, str]], verbose: bool) -> list[str]:
    """A line for each row when all are asked for; else one line for the many rows of one reason."""
    lines = [one_line(*row) for row in rows] if verbose else grouped(rows)
    return [f"{word:<10} {line}" for line in lines]


def _shorten(
    rows: list[str], what: str, verbose: bool, do: str = "-v lists all; skipped.json keeps them"
) -> list[str]:
    if verbose or len(rows) <= _FEW:
        return rows
    return [*rows[:_FEW], f"... and {len(rows) - _FEW} more {what} ({do})"]
