"""The questions at the end of each lesson, with something to learn from every wrong choice."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from foundry_lab.checks.record import Record
from foundry_lab.errors import InvalidRequest
from foundry_lab.lesson import WIDTH

__all__ = ["Question", "questions", "quiz"]

FOLDER = Path(__file__).parent / "quizzes"
LETTERS = "abcdef"


@dataclass(frozen=True)
class Question:
    """One question: with choices, or with a number that needs code to be found."""

    ask: str
    choices: list[list[str]]
    """Text, and what to say to whoever takes it; none where a number is asked for."""

    right: str
    """The letter of the right choice, or the number as text."""

    near: list[list[str]]
    """Wrong numbers that are worth a sentence of their own, and the sentence."""

    why: str
    """What to say to a right number; to a wrong one without a sentence, `otherwise`."""

    otherwise: str

    def told(self, answer: object) -> tuple[bool, str]:
        """Whether the answer is right, and why.

        Raises:
            InvalidRequest: It is none of the choices, or no number where one is asked for.
        """
        return self._choice(answer) if self.choices else self._number(answer)

    def _choice(self, answer: object) -> tuple[bool, str]:
        letters = LETTERS[: len(self.choices)]
        letter = str(answer).strip().lower()
        if len(letter) != 1 or letter not in letters:
            raise InvalidRequest(
                f"{answer!r} is none of the choices.", fix=f"Take one of {', '.join(letters)}."
            )
        return letter == self.right, self.choices[letters.index(letter)][1]

    def _number(self, answer: object) -> tuple[bool, str]:
        try:
            number = float(str(answer))
        except ValueError:
            raise InvalidRequest(
                f"{answer!r} is no number.", fix="Let code find the number, and hand it over."
            ) from None
        if abs(number - float(self.right)) <= 1e-6 * max(1.0, abs(float(self.right))):
            return True, self.why
        near = {float(wrong): text for wrong, text in self.near}
        return False, near.get(number, self.otherwise)


def questions(lesson: str) -> list[Question]:
    """The questions of a lesson.

    Raises:
        InvalidRequest: There is no such lesson.
    """
    path = FOLDER / f"{lesson}.toml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise InvalidRequest(f"There is no quiz {lesson!r}.", fix=f"Take one of {names}.")
    given: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    empty = {"choices": [], "near": [], "why": "", "otherwise": ""}
    return [Question(**{**empty, **one, "right": str(one["right"])}) for one in given]


def quiz(lesson: str, number: int | None = None, answer: object = None) -> None:
    """Print the questions of a lesson, or say what is right or wrong about one answer.

    Args:
        lesson: Such as ``"04"``.
        number: The question, counted from 1; all questions if there is none.
        answer: A letter, or a number where one is asked for.

    Raises:
        InvalidRequest: There is no such quiz, question or choice.
    """
    asked = questions(lesson)
    if number is None:
        for place, question in enumerate(asked, 1):
            _print_question(place, question)
        wrong = "b" if asked[0].right == "a" else "a"
        print(f'\nAnswer one: quiz("{lesson}", 1, "{wrong}")')
        return
    if not 1 <= number <= len(asked):
        raise InvalidRequest(
            f"There is no question {number}.", fix=f"Take one from 1 to {len(asked)}."
        )
    question = asked[number - 1]
    if answer is None:
        _print_question(number, question)
        return
    right, why = question.told(answer)
    print(fill(f"{'✓' if right else '✗'} {why}", WIDTH, subsequent_indent="  "))
    if right:
        record = Record.change(lambda record: _note(record, lesson, number))
        print(
            f"{len(record.quizzes[lesson])} of {len(asked)} questions of lesson {lesson} answered"
        )


def _print_question(place: int, question: Question) -> None:
    print(fill(f"{place}. {question.ask}", WIDTH, subsequent_indent="   "))
    for letter, (text, _) in zip(LETTERS, question.choices, strict=False):
        print(fill(f"   {letter}) {text}", WIDTH, subsequent_indent="      "))


def _note(record: Record, lesson: str, number: int) -> None:
    record.quizzes[lesson] = sorted({*record.quizzes.get(lesson, []), number})
