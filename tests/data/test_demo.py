"""The demo's sentences: from the real standard library, and from copies of it that are damaged."""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from capaft.data.demo import PACKAGES, demo_examples, in_validation, sentences
from capaft.support.errors import UsageError

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return sentences(STDLIB)


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_sentences_are_distinct_clean_and_labelled_with_known_packages(pairs: list[tuple[str, str]]) -> None:
    texts = [text for text, _ in pairs]
    assert len(set(texts)) == len(texts)
    assert {package for _, package in pairs} == set(PACKAGES)
    for text in texts:
        assert text == " ".join(text.split())
        assert len(text.split()) >= 3


def test_sentences_are_enough_and_balanced_enough(pairs: list[tuple[str, str]]) -> None:
    counts = Counter(package for _, package in pairs)
    assert 1_800 <= len(pairs) <= 3_000
    assert min(counts.values()) >= 40
    assert max(counts.values()) <= 0.25 * len(pairs)
    held_out = sum(in_validation(text) for text, _ in pairs)
    assert 0.17 <= held_out / len(pairs) <= 0.25


def test_what_counts_as_the_first_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "asyncio"
    (folder / "test").mkdir(parents=True)
    (tmp_path / "email").mkdir()
    (folder / "a.py").write_text(
        '"""The module  says\nthis first. Then that."""\n'
        'class C:\n    """One class paragraph e.g. this\n    \n    Another paragraph."""\n'
        '    async def m(self):\n        r"""Wait for \\d things!\n        Return."""\n'
        'def f():\n    """Too short."""\n'
        'def g():\n    """Said in two packages."""\n'
        'def h():\n    """A lone surrogate \\udc80 here."""\n'
    )
    (folder / "test" / "b.py").write_text('"""A sentence of tests."""')
    (folder / "broken.py").write_text('"""A file of another language."""\nprint "no"')
    (folder / "null.py").write_bytes(b"\0")
    (tmp_path / "email" / "c.py").write_text('"""Said in two packages."""')
    (tmp_path / "re.py").write_text('"""A module that is no label."""')
    assert sentences(tmp_path) == [
        ("One class paragraph e.g. this", "asyncio"),
        ("The module says this first.", "asyncio"),
        (r"Wait for \d things!", "asyncio"),
    ]


def test_the_split_depends_on_the_text_alone() -> None:
    golden = {
        "Wait for the barrier.": False,
        "Close the loop.": True,
        "Abstract Transport class.": True,
        "Discard all session cookies.": False,
    }
    assert {text: in_validation(text) for text in golden} == golden


def test_examples_hold_every_sentence_once_in_a_fixed_split(pairs: list[tuple[str, str]]) -> None:
    data = demo_examples()
    assert list(data) == ["train", "validation"]
    seen = []
    for name, split in data.items():
        label = split.features["label"]
        assert label.names == list(PACKAGES)
        assert set(split["label"]) == set(range(len(PACKAGES)))
        assert all(in_validation(text) == (name == "validation") for text in split["text"])
        seen += [(text, label.int2str(number)) for text, number in zip(split["text"], split["label"], strict=True)]
    assert sorted(seen) == pairs


def test_examples_are_the_same_every_time() -> None:
    first, second = demo_examples(), demo_examples()
    for name in first:
        assert first[name].to_dict() == second[name].to_dict()


@pytest.mark.parametrize("stripped", ["absent", "empty", "compiled", "partial"])
def test_stripped_sources_are_refused(stripped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib = tmp_path / "python3"
    if stripped != "absent":
        stdlib.mkdir()
    if stripped == "compiled":
        (stdlib / "asyncio").mkdir()
        (stdlib / "asyncio" / "__init__.pyc").write_bytes(b"\0")
    if stripped == "partial":
        for package in set(PACKAGES) - {"xmlrpc"}:
            (stdlib / package).symlink_to(STDLIB / package)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(stdlib)})
    with pytest.raises(UsageError, match=r"xmlrpc: .*\.py files, or pass --model and --data") as error:
        demo_examples()
    assert str(stdlib) in one_line(error)
    assert ("asyncio" in one_line(error)) == (stripped != "partial")
