"""Options of `capaft generate`, by the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from capaft.config.open_options import OpenOptions
from capaft.config.ranges import POSITIVE, at_least
from capaft.config.settings import Check, check_range, flag_of, setting, setting_types
from capaft.config.values import Text, required_type
from capaft.support.errors import UsageError, did_you_mean
from capaft.support.json_types import fits

_text = partial(setting, panel="Text")
_decoding = partial(setting, panel="Decoding")
_SHARE: Check = ("in (0, 1]", lambda value: 0 < value <= 1)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
"""Options that only sampling reads."""
PENALTIES = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
"""Options that every way of decoding reads."""


@dataclass(frozen=True)
class GenerateOptions(OpenOptions):
    """Options of `capaft generate`: unless one is given, texts are decoded as in the run's evaluation."""

    base: bool = _text(False, "Answer with the adapter off.")
    compare: bool = _text(False, "Answer with the adapter off, then with it.")
    system: Text | None = _text(None, "System text of the chat.", metavar="text")
    chat_template: bool | None = _text(
        None, "Put prompts into the checkpoint's chat template, or leave them as they are (default: as in the run)."
    )
    max_new_tokens: int | None = _decoding(
        None, "Tokens generated at most (default: as in the run).", check=at_least(1)
    )
    min_new_tokens: int | None = _decoding(None, "Tokens generated at least.", check=at_least(0))
    do_sample: bool = _decoding(False, "Draw each token at random, instead of taking the likeliest.")
    temperature: float | None = _decoding(
        None, "Temperature of the draw (default of this and the next four: the checkpoint's).", check=POSITIVE
    )
    top_k: int | None = _decoding(None, "Draw among this many likeliest tokens; 0 is all.", check=at_least(0))
    top_p: float | None = _decoding(None, "Draw among the likeliest tokens of this joint probability.", check=_SHARE)
    min_p: float | None = _decoding(
        None,
        "Draw among tokens of at least this share of the likeliest one's probability.",
        check=("in [0, 1]", lambda value: 0 <= value <= 1),
    )
    typical_p: float | None = _decoding(None, "Draw among the most typical tokens of this probability.", check=_SHARE)
    seed: int | None = _decoding(
        None, "Seed of the draws (default: a new one).", check=("in [0, 2**63)", lambda value: 0 <= value < 2**63)
    )
    num_beams: int | None = _decoding(
        None,
        "Beams of the search; 1 is none (default: as in the run).",
        check=("in [1, 1000]", lambda n: 1 <= n <= 1000),
    )
    length_penalty: float | None = _decoding(
        None, "Bias of the beam search, above 0 towards longer texts (default: as in the run)."
    )
    repetition_penalty: float | None = _decoding(
        None, "Divisor of the scores of tokens that have occurred; 1 is none (default: 1).", check=POSITIVE
    )
    no_repeat_ngram_size: int | None = _decoding(
        None,
        "Groups of this many tokens occur only once; 0 allows repeats (default: as in the run).",
        check=at_least(0),
    )

    def conflicts(self, labels: Mapping[str, str]) -> list[str]:
        """See `Settings.conflicts`."""
        conflicts = []
        if self.base and self.compare:
            conflicts.append("--base and --compare cannot be used together; drop one")
        if self.max_new_tokens and (self.min_new_tokens or 0) > self.max_new_tokens:
            conflicts.append(
                f"--min-new-tokens {self.min_new_tokens} is more than --max-new-tokens {self.max_new_tokens}; lower it"
            )
        return conflicts

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The options of some values by name, as Python has them.

        Raises:
            UsageError: one is unknown, of another type or out of range, or they contradict one another.
        """
        kinds = {name: required_type(kind) for name, kind in setting_types(cls).items()}
        for name, value in values.items():
            if name not in kinds:
                raise UsageError(f"{flag_of(name)}: there is no such option{did_you_mean(name, list(kinds))}")
            if value is None:
                continue
            if kinds[name] in (int, float, bool) and not fits(value, kinds[name]):
                raise UsageError(f"{flag_of(name)} must be of type {kinds[name].__name__}, got {value!r:.100}")
            try:
                check_range(cls, name, value, str(value))
            except ValueError as error:
                raise UsageError(f"{flag_of(name)} {error}") from None
        options = cls(**values)
        if conflicts := options.conflicts({}):
            raise UsageError(*conflicts)
        return options

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some options that were given, by name."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def idle(self, num_beams: int) -> Iterator[str]:
        """The options that were given and have no effect, a line each.

        Args:
            num_beams: the number of beams, perhaps the run's.
        """
        if not self.do_sample:
            for name in self.given(*SAMPLING):
                yield f"{flag_of(name)} has no effect without --do-sample and is ignored"
        if num_beams == 1 and self.length_penalty is not None:
            yield "--length-penalty has no effect with --num-beams 1 and is ignored"
