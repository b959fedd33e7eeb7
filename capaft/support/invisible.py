"""Characters that leave no mark: blanks, and those without a width, such as a byte order mark within a text."""

from __future__ import annotations

_WITHOUT_WIDTH = (
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180E, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
)

WITHOUT_WIDTH = "".join(map(chr, _WITHOUT_WIDTH))
"""Characters that Unicode says are not drawn."""

INVISIBLE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + WITHOUT_WIDTH
"""Those and all blanks."""
