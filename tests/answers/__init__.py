"""What proves the graders: for each exercise, answers that must pass and ones that must not.

The workbook's own solution is not here: it stands in the master notebook, which runs under nbval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Answers"]


@dataclass(frozen=True)
class Answers:
    """Answers to one exercise, beside the solution in its master."""

    right: Sequence[Any]
    """Correct in another way: at least one."""

    wrong: dict[str, tuple[Any, str]]
    """Mistake: the answer that makes it, and words of the verdict. At least three."""
