"""OverlayOptions: everything an overlay can be asked for, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llgbm_pack.plan.option_values import (
    choice_option,
    count_option,
    last_component,
    pairs_option,
    path_option,
    refuse_overlap,
    strings_option,
    tokenizer_option,
)
from llgbm_pack.plan.options import PackOptions
from llgbm_shards.arguments import MOST_WORKERS, is_text, require
from llgbm_shards.errors import UsageError
from llgbm_shards.names import FORMS, TOKENIZER_DIRECTORY

if TYPE_CHECKING:  # It brings numpy, which --help has no need of.
    from llgbm_shards.record import CommitRecord

#: No checkpoint can be left out: an overlay has the samples of its base.
OVERLAY_MISSING_DELTA: Final = ("error", "zeros")


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayOptions:
    """Options of an overlay; the names are those of ``llgbm-pack overlay``. What cannot be is a UsageError.

    With any of the options of texts, these are tokenized anew; what of them is None is as in the base.
    """

    base: Path  # the set whose samples it has anew
    out: Path  # directory the overlay goes to
    deltas: Path | None = None  # delta cache; None packs no deltas
    texts: Path | None = None  # directory of newer text files by dataset
    text_tokenizer: str | None = None  # name or directory of a transformers tokenizer
    forms: tuple[str, ...] | None = None  # prompt, answer, prompt_answer; None and none in the base: prompt
    joiner: str | None = (
        None  # between prompt and answer in prompt_answer; None and no texts in the base: newline
    )
    missing_delta: str = "error"  # or zeros: what to do with a checkpoint that has no delta
    maps: tuple[tuple[str, str], ...] = ()  # prefix rewrites (old, new) for paths in the delta manifest
    workers: int = 1  # worker processes; their start takes as long as some thousand samples
    strict: bool = False  # commit nothing if anything is warned about
    overwrite: bool = False  # replace a finished set

    def __post_init__(self) -> None:
        for name in ("base", "out", "deltas", "texts"):
            optional = name in ("deltas", "texts")
            _set(self, name, path_option(name, getattr(self, name), optional=optional))
        _set(self, "text_tokenizer", tokenizer_option(self.text_tokenizer))
        _set(self, "maps", pairs_option(self.maps))
        if self.forms is not None:
            _set(self, "forms", strings_option("forms", self.forms))
            for form in self.forms:
                choice_option("forms", form, FORMS)
            require(
                len(set(self.forms)) == len(self.forms) > 0,
                "forms",
                "each form once, at least one",
                self.forms,
            )
        require(self.joiner is None or is_text(self.joiner), "joiner", "text", self.joiner)
        choice_option("missing_delta", self.missing_delta, OVERLAY_MISSING_DELTA)
        _set(self, "workers", count_option("workers", self.workers, MOST_WORKERS))
        for name in ("strict", "overwrite"):
            require(isinstance(getattr(self, name), bool), name, "True or False", getattr(self, name))
        refuse_overlap(self.base, self.out, "base")
        if self.deltas is None and not self.with_texts:
            raise UsageError(
                "nothing new is asked for",
                where="overlay",
                expected="--deltas, or some of --text-tokenizer, --form, --joiner and --texts",
                got="none of them",
            )

    @property
    def with_texts(self) -> bool:
        """Whether texts are tokenized anew."""
        given = (self.texts, self.text_tokenizer, self.forms, self.joiner)
        return any(value is not None for value in given)

    @property
    def worker_count(self) -> int:
        """Worker processes to use."""
        return self.workers

    def settled(self, base: CommitRecord) -> OverlayOptions:
        """The options with what the base says where they say nothing.

        Raises:
            UsageError: Texts are asked for, and neither says by what tokenizer.
        """
        if not self.with_texts:
            return self
        spec = base.texts
        if self.text_tokenizer is None and not spec["forms"]:
            raise UsageError(
                "no text tokenizer",
                where=str(self.base),
                expected="--text-tokenizer NAME|DIR, for the base has no tokenized texts",
                got="none",
            )
        return replace(
            self,
            text_tokenizer=self.text_tokenizer or str(self.base / TOKENIZER_DIRECTORY),
            forms=self.forms or tuple(spec["forms"]) or ("prompt",),
            joiner=spec.get("joiner", "\n") if self.joiner is None else self.joiner,
        )

    def content(self) -> dict[str, Any]:
        """What the overlay records of them; paths keep their last component only."""
        places = {name: last_component(getattr(self, name)) for name in ("base", "deltas", "texts")}
        return {
            **places,
            "text_tokenizer": last_component(self.text_tokenizer),
            "forms": list(self.forms or ()),
            "joiner": self.joiner or "",
            "missing_delta": self.missing_delta,
        }


#: Those of a plan.
AnyOptions = PackOptions | OverlayOptions


def _set(options: OverlayOptions, name: str, value: object) -> None:
    object.__setattr__(options, name, value)  # frozen for everybody else


def recorded_overlay(recorded: Mapping[str, Any], **given: Any) -> OverlayOptions:
    """The options that made an overlay.

    Args:
        recorded: What :meth:`OverlayOptions.content` gave it.
        given: Paths as they are now, and what else an overlay does not record.

    Raises:
        UsageError: They are none that an overlay takes.
    """
    try:
        forms = tuple(recorded["forms"]) or None
        joiner = recorded["joiner"] if forms else None
        return OverlayOptions(forms=forms, joiner=joiner, missing_delta=recorded["missing_delta"], **given)
    except (KeyError, TypeError) as error:
        raise UsageError("the set does not record the options of an overlay", got=repr(error)) from error
