"""Foreign text is shown as it is, except for what would act on the screen or on a document around it."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from capaft.support import strict_json
from capaft.support.console import print_line, print_result
from capaft.support.printable import printable


@pytest.mark.parametrize(
    "text",
    [
        "naïve façade, «guillemets\u00a0»",
        "日本語\u3000テスト",
        "नमस्ते क्\u200dष",
        "می\u200cخواهم ٣",
        "👩\u200d👩\u200d👧 ❤️ 🇩🇪",
        "e\u0301 ﬁ Ω",
        r"C:\models\new",
        "",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07\x00\x7f", r"\x1b[2J\x07\x00\x7f"),
        ("a\nerror: b\r\tc", r"a\nerror: b\r\tc"),
        ("\x85\x9b31m", r"\x85\x9b31m"),
        ("\u202egnp\u202c\u2066\u2069\u200e\u200f", r"\u202egnp\u202c\u2066\u2069\u200e\u200f"),
        ("\u2028\u2029\u200b\ufeff\u00ad", r"\u2028\u2029\u200b\ufeff\xad"),
        ("\udc80\ud83d", r"\udc80\ud83d"),
        ("\U000e0041\ue000", r"\U000e0041\ue000"),
    ],
)
def test_what_acts_on_the_screen_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_lines_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(Console(stderr=True), "[red]:smile: a\nb\x1b[0m")
    print_result("one\ntwo\x9b\n")
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == ("[red]:smile: a\\nb\\x1b[0m\n", "one\ntwo\\x9b\n")


def test_json_is_ascii_without_control_characters() -> None:
    value = {"\x7f": "\x9b\u2028\x1b\udc80é"}
    text = strict_json.document(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value
