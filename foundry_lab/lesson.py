"""What the lessons need besides their subject: compare a guess, meet an error and go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any

__all__ = ["aligned", "compare", "expect", "table"]

WIDTH = 96
"""Characters that fit into an output of a notebook: JupyterLab breaks longer lines inside words."""


def compare(guess: object, measured: object) -> None:
    """Print your guess beside what was measured; None means that you made no guess."""
    if guess is None:
        print(f"measured: {measured}   (no guess: you remember more if you make one first)")
    else:
        print(f"measured: {measured}   your guess: {guess}")


@contextmanager
def expect(*errors: type[BaseException]) -> Iterator[None]:
    """Print the error that the block is meant to raise, and go on.

    Raises:
        AssertionError: The block raised nothing.
    """
    try:
        yield
    except errors as error:
        for line in f"{type(error).__name__}: {error}".splitlines():
            print(fill(line, WIDTH, subsequent_indent="  ", break_long_words=False))
    else:
        raise AssertionError(f"expected {' or '.join(kind.__name__ for kind in errors)}, got none")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a header, in columns as wide as what they hold."""
    print(aligned(header, rows))


def aligned(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return the lines that `table` prints."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["─" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
