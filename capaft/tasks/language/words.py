"""Words of texts in any script, for scores that compare words.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan put no spaces between words. There every character is a token,
as in sacrebleu's tokenizers `zh` and `char`, which need no dictionary; other letters make words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import regex

from capaft.support.errors import UsageError

BleuTokenizer = Literal["13a", "zh", "char"]
"""A tokenizer of sacrebleu: for scripts with spaces, for Chinese among other scripts, or one token a character."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
# A character without spaces around it takes its marks along: a Thai vowel or tone has no place of its own.
_WORD = regex.compile(rf"[{_UNSPACED}--\p{{M}}]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--[{_UNSPACED}--\p{{M}}]]+", regex.V1)
_LETTER = regex.compile(r"\p{L}")
_UNSPACED_LETTER = regex.compile(rf"[{_UNSPACED}&&\p{{L}}]", regex.V1)
_HAN = regex.compile(r"\p{Han}")
_CHINESE = frozenset({"zh", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh"})
_UNSPACED_LANGUAGES = frozenset({"ja", "th", "lo", "km", "my", "bo", "dz"})
# The three letters of ISO 639-2 and 639-3 for the languages that are told apart here.
_TWO_LETTERS = {"zho": "zh", "chi": "zh", "cmn": "zh", "jpn": "ja", "tha": "th", "lao": "lo", "khm": "km"}
_TWO_LETTERS |= {"mya": "my", "bur": "my", "bod": "bo", "tib": "bo", "dzo": "dz", "eng": "en"}
_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")
# rouge_score leaves shorter words as they are.
_STEMMED = 4


class WordTokenizer:
    """The tokens of a text for ROUGE: words in lower case, and single characters of scripts without spaces.

    Words of ASCII are stemmed as English, unless the language is another. The tokens of a text in ASCII are then those
    of rouge_score's own tokenizer, which takes all other letters for spaces.

    Args:
        language: a code such as `en` or `pt-BR`; empty if unknown.
    """

    def __init__(self, language: str = "") -> None:
        self.stems = base_language(language) in ("", "en")

    def tokenize(self, text: str) -> list[str]:
        """The tokens; the name is that of rouge_score's interface."""
        words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        return [self._stemmer.stem(word) if self._is_stemmed(word) else word for word in words]

    def _is_stemmed(self, word: str) -> bool:
        return self.stems and word.isascii() and len(word) >= _STEMMED

    @cached_property
    def _stemmer(self) -> Any:
        from nltk.stem.porter import PorterStemmer

        return PorterStemmer()


def bleu_tokenizer(language: str, references: Iterable[Sequence[str]]) -> BleuTokenizer:
    """Tokenizer of sacrebleu for a language, or for the script that most letters of the references have.

    Args:
        language: a code such as `zh` or `pt-BR`; empty if unknown.
        references: the references of each text.
    """
    texts = [reference for of_text in references for reference in of_text]
    if has_spaces(language, texts):
        return "13a"
    if language:
        return "zh" if base_language(language) in _CHINESE else "char"
    return "zh" if all(map(_HAN.match, _UNSPACED_LETTER.findall("".join(texts)))) else "char"


def has_spaces(language: str, texts: Iterable[str]) -> bool:
    """True if a language puts spaces between words, or if the script of most letters does."""
    if language:
        return base_language(language) not in _CHINESE | _UNSPACED_LANGUAGES
    text = "".join(texts)
    return 2 * len(_UNSPACED_LETTER.findall(text)) <= len(_LETTER.findall(text))


def check_language(language: str) -> None:
    """Check that a language is a code.

    Raises:
        UsageError: it is not, such as a name of the language.
    """
    if language and not _CODE.fullmatch(language):
        raise UsageError(f"--language must be a code such as en, zh or pt-BR, got {language!r}")


def base_language(language: str) -> str:
    """The code without its region or script: `pt` for `pt-BR`, and `ja` for `jpn`."""
    code = re.split("[-_]", language.lower())[0]
    return _TWO_LETTERS.get(code, code)
