"""``check`` and ``hint``: an exercise's grader, its verdict, and what helps on."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from textwrap import fill
from typing import Any

from foundry_lab.checks.bench import Wrong, expect_callable, expect_written, run_bounded
from foundry_lab.checks.record import Record
from foundry_lab.checks.sheets import Exercise, exercise, exercises
from foundry_lab.lesson import WIDTH

__all__ = ["check", "grade", "hint"]


def check(name: str, answer: Any) -> None:
    """Try an answer, print the verdict, and remember it.

    Args:
        name: The exercise, such as ``"04-2"``.
        answer: What the exercise asks for: mostly your function itself, without calling it.

    Raises:
        InvalidRequest: There is no such exercise.
    """
    one = exercise(name)
    wrong, printed = _tried(one, answer)
    record = Record.change(lambda record: _note(record, name, wrong))
    if wrong is None:
        print(f"{name} ✓ {one.title}: passed")
        print(_next(record, one))
    else:
        print(f"{name} ✗ {one.title}: not yet")
        for label, text in wrong.lines.items():
            _say(f"{label}:", text)
        count, shown = len(one.hints) + 1, record.hints.get(name, 0)
        following = f"hint {shown + 1} of {count}" if shown < count else "the hints again"
        print(f'hint("{name}") shows {following}')
    if printed.strip():
        _say("Printed:", " ".join(printed.split())[:300])


def grade(name: str, answer: Any) -> tuple[Wrong | None, str]:
    """Try an answer: what is wrong with it, None for nothing, and what it printed.

    Raises:
        InvalidRequest: There is no such exercise.
    """
    return _tried(exercise(name), answer)


def _tried(one: Exercise, answer: Any) -> tuple[Wrong | None, str]:
    graders: dict[str, Callable[[Any], None]] = import_module(
        f"foundry_lab.checks.lesson_{one.name[:2]}"
    ).GRADERS
    return run_bounded(lambda: _graded(graders[one.name], answer))


def _graded(grader: Callable[[Any], None], answer: Any) -> None:
    tried = "look at your answer"
    expect_written(answer, tried=tried, expected="your own in place of `...`")
    (taken,) = signature(grader).parameters.values()
    if taken.annotation is not Any:  # a function or a class, as the grader says
        expect_callable(answer, tried=tried)
    grader(answer)


def hint(name: str) -> None:
    """Print the next hint of an exercise; the last one is the solution.

    Raises:
        InvalidRequest: There is no such exercise.
    """
    one = exercise(name)
    count = len(one.hints) + 1
    shown = Record.read().hints.get(name, 0) % count
    if shown < len(one.hints):
        symptom, text = one.hints[shown]
        print(fill(f"Hint {shown + 1} of {count} · {symptom}", WIDTH))
        print(fill(text, WIDTH))
    else:
        print(f"Hint {count} of {count} · The solution of the workbook; yours may be another.\n")
        print(one.solution)
    Record.change(lambda record: record.hints.update({name: shown + 1}))


def _note(record: Record, name: str, wrong: Wrong | None) -> None:
    record.tried[name] = record.tried.get(name, 0) + 1
    if wrong is None and name not in record.passed:
        record.passed.append(name)


def _next(record: Record, one: Exercise) -> str:
    ahead = [o for o in exercises() if o.sheet == one.sheet and o.name not in record.passed]
    if not ahead:
        return f"All of {one.sheet.removesuffix('.ipynb')} is done."
    return f"Next: {ahead[0].name}, {ahead[0].title}, {ahead[0].minutes} minutes"


def _say(label: str, text: str) -> None:
    print(
        fill(
            text,
            WIDTH,
            initial_indent=f"{label:10}",
            subsequent_indent=" " * 10,
            break_long_words=False,
        )
    )
