"""Tables as text, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def layout(headings: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Rows under headings in columns of equal width, as text or as a Markdown table."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    edge, gap = ('| ', ' | ') if markdown else ('', '  ')
    said = []
    for number, line in enumerate(lines):
        text = gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        said.append(f'{edge}{text}{edge[::-1]}'.rstrip())
        if number == 0:
            said.append('|'.join(['', *('-' * (width + 2) for width in widths), '']) if markdown else '-' * len(text))
    return '\n'.join(said)
