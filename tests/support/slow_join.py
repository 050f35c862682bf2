"""The rules of joining, written down plainly: every delta is held against every checkpoint by every rule."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.deltas.paths import is_generic, split_path, unwrap


def outcome(result) -> dict[str, object]:
    """What became of each checkpoint: ``(key of its delta, rule, whether lone)``, None, or the keys in question."""
    return {
        **{
            path: (match.entry.key, match.matched_by, "alone" in match.note)
            for path, match in result.matches.items()
        },
        **dict.fromkeys(result.missing),
        **{doubt.checkpoint: [entry.key for entry in doubt.entries] for doubt in result.doubts},
    }


def slow_join(
    checkpoints: Sequence[str],
    zoo: str,
    entries: Sequence[DeltaEntry],
    content: Mapping[str, int],
    tasks: Mapping[str, str],
) -> dict[str, object]:
    """:func:`outcome` of a join by the rules; ``content`` says which deltas, by key, are equal."""
    seen = _Seen(checkpoints, zoo, entries)
    by_key = {entry.key: entry for entry in entries}
    owners = {entry.key: seen.owners(entry) for entry in entries}
    rows: dict[str, object] = {}
    for path in checkpoints:
        mine = [entry.key for entry in entries if path in owners[entry.key][1]]
        alone = all(len(owners[key][1]) == 1 for key in mine)
        equal = len({content[key] for key in mine}) == 1
        ranks = {
            key: (
                seen.is_of_another_task(path, by_key[key], owners[key][0], tasks),
                seen.is_lone(path, key, owners[key][0]),
                key,
            )
            for key in mine
        }
        other, lone, best = min(ranks.values(), default=(False, False, ""))
        if not mine:
            rows[path] = None
        elif not (alone and equal):
            rows[path] = mine
        else:
            rows[path] = [best] if other else (best, owners[best][0], lone)
    return rows


class _Seen:
    def __init__(self, checkpoints, zoo, entries) -> None:
        self.real = os.path.realpath(zoo)
        self.relative = {path: split_path(path) for path in checkpoints}
        self.whole = {path: split_path(self.real) + parts for path, parts in self.relative.items()}
        self.full = {path: unwrap(parts) for path, parts in self.whole.items()}
        self.paths = {entry.key: self.home(entry.path) for entry in entries}
        self.tails = {key: unwrap(parts) for key, parts in self.paths.items()}

    def home(self, recorded):
        """A recorded path with the real path in place of another spelling of the zoo, or of a folder inside it."""
        parts = split_path(recorded)
        for start in range(len(parts) + 1):
            if parts[start:] in self.relative.values():
                place = os.path.join("", *parts[:start])
                if os.path.realpath(place) == self.real:
                    return split_path(self.real) + parts[start:]
        folder = os.path.join("", *parts[:-1])
        place = os.path.realpath(folder)
        if place != os.path.abspath(folder) and f"{place}/".startswith(f"{self.real}/"):
            return split_path(place) + parts[-1:]
        inside = os.path.realpath(f"{self.real}/{folder}")
        if (
            not os.path.isabs(folder)
            and inside != os.path.normpath(f"{self.real}/{folder}")
            and f"{inside}/".startswith(f"{self.real}/")
        ):
            return split_path(inside)[len(split_path(self.real)) :] + parts[-1:]
        return parts

    def owners(self, entry):
        """The rule that speaks first, and the checkpoints it speaks for; those of its name too if it contradicts."""
        by_rule = {
            "exact": [path for path in self.whole if self.whole[path] == self.paths[entry.key]],
            "relative": [path for path in self.relative if self.relative[path] == self.paths[entry.key]],
            "tail": self.by_tail(entry.key),
            "name": [path for path in self.by_name(entry) if not self.common(path, entry.key)],
        }
        rule = next((rule for rule, found in by_rule.items() if found), "")
        found = set(by_rule.get(rule, ()))
        meant = {path for path in self.full if entry.name in (path, self.full[path][-1])}
        if len(found) == 1 and any(map(str.isalpha, entry.name)) and meant and not meant & found:
            found |= meant
        return rule, found

    def by_tail(self, key):
        heights = {path: self.common(path, key) for path in self.full}
        good = {path: height for path, height in heights.items() if height and self.joins(path, key, height)}
        best = max(good.values(), default=0)
        return [path for path, height in good.items() if height == best]

    def is_lone(self, path, key, rule):
        """Whether the shared tail names one thing at most, is no whole path of the zoo, and folders above differ."""
        height, whole = self.common(path, key), len(unwrap(self.relative[path]))
        named = [part for part in self.full[path][-height:] if not is_generic(part)]
        differ = height < min(len(self.full[path]), len(self.tails[key]))
        return rule == "tail" and differ and len(named) <= 1 and not height >= whole >= 2

    def is_of_another_task(self, path, entry, rule, tasks):
        """Whether the cache calls the delta by a task that is none of the checkpoint's, and no shared folder says more."""
        relative, own = unwrap(self.relative[path]), tasks.get(path, "")
        if rule == "tail":
            shared = self.full[path][-self.common(path, entry.key) :]
        elif rule == "name":
            shared = split_path(entry.name)
        else:
            return False
        covers = len(shared) >= len(relative) > 1  # it holds the first folder, which is the task's
        if not entry.task or covers or {own, entry.task} & set(shared[:-1]):
            return False
        known = {own, *relative[:-1]} - {""}
        return bool(known) and entry.task not in known

    def by_name(self, entry):
        last = [path for path in self.full if self.full[path][-1] == entry.name]
        return {path for path in self.full if path == entry.name} | set(last if len(last) == 1 else ())

    def common(self, path, key):
        """Components of the longest shared tail."""
        full, tail = self.full[path], self.tails[key]
        shared = [h for h in range(1, min(len(full), len(tail)) + 1) if full[-h:] == tail[-h:]]
        return max(shared, default=0)

    def joins(self, path, key, height):
        full, tail = self.full[path], self.tails[key]
        if height in (len(full), len(tail)):
            return True
        whole = len(unwrap(self.relative[path]))
        generic = all(map(is_generic, full[-height:]))
        if height >= whole > 1 and not generic:
            return True
        in_cache = {other[-height - 1] for other in self.tails.values() if len(other) > height}
        in_zoo = {other[-height - 1] for other in self.full.values() if len(other) > height}
        covers = height >= max(whole, 1)
        return (
            (covers or not generic) and full[-height - 1] not in in_cache and tail[-height - 1] not in in_zoo
        )
