"""Text of others made fit for a terminal."""

from __future__ import annotations

# C0 has pictures of its own in Unicode; C1, which some terminals obey, has none.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """`text` with control characters made visible, so that no escape sequence in it reaches a terminal.

    >>> visible("\\x1b[2Jhi")
    '␛[2Jhi'
    """
    return text.replace("\r\n", "\n").translate(CONTROLS)
