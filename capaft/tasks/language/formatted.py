"""Prompts and completions as examples: in the model's chat template, or as they are if they are already formatted."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from capaft.support.errors import UsageError
from capaft.tasks.language.chat import pair_example
from capaft.tasks.language.chat_template import exchange, has_template, render_prompt, turn_ends
from capaft.tasks.language.example import Example, plain_examples
from capaft.tasks.language.framing import Frame, frame
from capaft.tasks.language.notes import CountedNote
from capaft.tasks.language.plain_text import end_of_text_token, special_tokens, surrounding_tokens
from capaft.tasks.language.text_pairs import Pair

SEPARATOR = "\n"
"""The default text between a prompt and its completion."""
_FRAMING = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
_QUESTION, _SYSTEM = "capaftquestion", "capaftsystem"


def pair_examples(
    tokenizer: Any, pairs: Sequence[Pair], separator: str, *, chat_template: bool
) -> tuple[list[Example], list[str]]:
    """The examples of prompts and completions.

    Args:
        tokenizer: of the model.
        pairs: prompts with their references.
        separator: stands after a prompt that is in no template; the default one does not after a formatted prompt.
        chat_template: put prompts that are not formatted into the model's template, if it has one.

    Returns:
        The examples, and lines that say which special tokens were already there.

    Raises:
        UsageError: as `pair_example`.
    """
    is_templated = chat_template and has_template(tokenizer)
    stops = turn_ends(tokenizer) if is_templated else _plain_ends(tokenizer)
    openings, start = _openings(tokenizer), _start(tokenizer)
    opening = [_opening(pair.source, openings, start) for pair in pairs]
    formatted = [pair for pair, begins in zip(pairs, opening, strict=True) if begins]
    raw = [pair for pair, begins in zip(pairs, opening, strict=True) if not begins]
    between = "" if separator == SEPARATOR else separator
    as_is = plain_examples(tokenizer, formatted, between, stops, _end_of_turn(tokenizer)) if formatted else []
    if is_templated:
        around = dataclasses.replace(start, ends=frame(tokenizer, (), ends=sorted(stops)).ends)
        bare = [_unframed(pair, around) for pair in raw]
        others = [pair_example(tokenizer, pair, stops) for pair in bare]
    else:
        around = frame(tokenizer, surrounding_tokens(tokenizer)[0], ends=sorted(stops))
        bare = [_unframed(pair, around) for pair in raw]
        others = plain_examples(tokenizer, raw, separator, stops)
    in_order = iter(as_is), iter(others)
    notes = around.note(sum(one != other for one, other in zip(raw, bare, strict=True)), len(pairs), "rows")
    if formatted:
        shown = next(filter(None, opening))
        text = f"prompts are already formatted, as {shown!r} shows, and stay as they are"
        notes.append(CountedNote(len(formatted), len(pairs), text))
    return [next(in_order[0] if begins else in_order[1]) for begins in opening], notes


def _end_of_turn(tokenizer: Any) -> int | None:
    """The token that the template puts after an answer, and so a formatted prompt waits for; None if it is unknown."""
    try:
        ends = turn_ends(tokenizer) - {tokenizer.eos_token_id} if has_template(tokenizer) else set()
    except UsageError:
        return None
    return next(iter(ends), None)


def _plain_ends(tokenizer: Any) -> set[int]:
    """Tokens that end an answer outside the template; one that renders no question knows no other."""
    try:
        return turn_ends(tokenizer) | {end_of_text_token(tokenizer)}
    except UsageError:
        return {end_of_text_token(tokenizer)}


def _start(tokenizer: Any) -> Frame:
    return frame(tokenizer, [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])


def _unframed(pair: Pair, around: Frame) -> Pair:
    """A pair without the special tokens that its example gets in any case.

    Raises:
        UsageError: nothing else is in a completion.
    """
    references = tuple(map(around.strip, pair.references))
    if any(text and not bare for text, bare in zip(pair.references, references, strict=True)):
        raise UsageError(f"row {pair.row}: the completion has nothing but special tokens; drop the row")
    begin = dataclasses.replace(around, ends=())
    return dataclasses.replace(pair, source=begin.strip(pair.source), references=references)


def _opening(source: str, openings: Collection[str], start: Frame) -> str:
    """The opening that a prompt begins with, after the token that begins a text; empty if there is none."""
    texts = (source.lstrip(), start.strip(source).lstrip())
    return next((opening for opening in openings for text in texts if text.startswith(opening)), "")


def _openings(tokenizer: Any) -> list[str]:
    """Texts that only a formatted prompt begins with: tokens of turns, and what the template writes before a turn."""
    start = _start(tokenizer)
    framing = {getattr(tokenizer, f"{name}_token_id", None) for name in _FRAMING}.union(*surrounding_tokens(tokenizer))
    turns = sorted(special_tokens(tokenizer) - framing)
    openings = list(frame(tokenizer, turns).before)
    for content, system in ((_QUESTION, ""), (_SYSTEM, _SYSTEM)) if has_template(tokenizer) else ():
        try:
            text = render_prompt(tokenizer, exchange(_QUESTION, "", system=system), 2 if system else 1)
        except UsageError:
            # Some templates, Gemma's among them, take no system text.
            continue
        openings += [token for token in start.before if text.count(token) > 1]
        openings.append(start.strip(text.partition(content)[0]).strip())
    return [opening for opening in dict.fromkeys(openings) if opening]
