"""The desk behind the exercises: bounded in time, told in words, and no work of a learner lost."""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from foundry_lab.checks import desk, progress, quiz, sheets
from foundry_lab.checks.bench import Wrong, attempt, run_bounded, value_of
from foundry_lab.checks.quiz import FOLDER, LETTERS, questions
from foundry_lab.checks.record import Record, progress_text
from foundry_lab.checks.sheets import copy_sheets, exercise, exercises, mine, reset
from foundry_lab.errors import InvalidRequest

QUIZZES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner's folder of its own for each test."""
    monkeypatch.setenv("FOUNDRY_EXERCISES", str(tmp_path / "mine"))
    return tmp_path / "mine"


# --- trying a learner's code -----------------------------------------------------------------


def tried(function: Callable[..., Any], seconds: float = 0.2) -> Wrong | None:
    wrong, _ = run_bounded(lambda: value_of(function, tried="call it", seconds=seconds))
    return wrong


def never_ends() -> None:
    while True:
        pass


def swallows_everything() -> None:
    while True:
        with contextlib.suppress(Exception):
            never_ends()


async def waits_for_ever() -> None:
    await asyncio.Event().wait()


async def will_not_be_cancelled() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@pytest.mark.parametrize(
    "function", [never_ends, swallows_everything, waits_for_ever, will_not_be_cancelled]
)
def test_what_does_not_end_is_stopped(function: Callable[..., Any]) -> None:
    """Loops and waits without end get a verdict within seconds, and run no longer."""
    began = time.monotonic()
    wrong = tried(function)
    assert wrong is not None
    assert "was stopped" in wrong.lines["Happened"]
    assert time.monotonic() - began < 5


def test_what_cannot_be_stopped_is_left() -> None:
    """A sleep in C code can't be interrupted; the verdict says to restart the kernel."""
    wrong = tried(lambda: time.sleep(6))
    assert wrong is not None
    assert "Restart the kernel" in wrong.lines["Look at"]


def test_an_exception_is_a_verdict() -> None:
    """An error in a learner's code is told with its type and its words."""
    wrong = tried(lambda: dict[str, int]()["first"])
    assert wrong is not None
    assert wrong.lines["Happened"].startswith("it raised KeyError: 'first'")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exit_is_a_verdict_too(error: BaseException) -> None:
    """What is no Exception ends the answer, and not the check."""

    def leaves() -> None:
        raise error

    async def leaves_later() -> None:
        raise error

    for function in (leaves, leaves_later):
        wrong = tried(function)
        assert wrong is not None
        assert type(error).__name__ in wrong.lines["Happened"]


def test_an_error_of_its_own_is_not_taken_for_lateness() -> None:
    """A TimeoutError that the code raises itself is what came of it."""

    async def gives_up() -> None:
        raise TimeoutError("I waited")

    seen: list[Any] = []
    run_bounded(lambda: seen.append(attempt(gives_up, tried="wait")))
    assert isinstance(seen[0].error, TimeoutError)


def test_output_is_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """What an answer prints is kept, its beginning at least, and does not mix with the verdict."""
    wrong, printed = run_bounded(
        lambda: value_of(lambda: [print("x" * 100) for _ in range(1000)] and None, tried="print")
    )
    assert wrong is None
    assert 1_000 < len(printed) <= 2_000
    assert capsys.readouterr().out == ""


def test_sync_and_async_are_both_tried() -> None:
    """A coroutine function is awaited on a loop of its own."""

    async def later() -> int:
        await asyncio.sleep(0)
        return 3

    seen: list[Any] = []
    run_bounded(lambda: seen.extend(value_of(f, tried="call it") for f in (lambda: 3, later)))
    assert seen == [3, 3]


# --- check, hint, progress -------------------------------------------------------------------


def test_check_remembers(capsys: pytest.CaptureFixture[str]) -> None:
    """Each check is counted; a pass is kept, also when a later answer fails."""
    desk.check("04-1", lambda *_: 1.0)
    desk.check("04-1", lambda retry, base, cap, rng: rng.uniform(0, min(cap, base * 2**retry)))
    desk.check("04-1", ...)
    assert Record.read().tried == {"04-1": 3}
    assert Record.read().passed == ["04-1"]
    assert "04-1 ✓ Full jitter: passed" in capsys.readouterr().out


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each call one step further; the solution last; then from the beginning."""
    count = len(exercise("04-1").hints) + 1
    for number in [*range(1, count + 1), 1]:
        desk.hint("04-1")
        assert capsys.readouterr().out.startswith(f"Hint {number} of {count}")


def test_what_does_not_exist_is_said() -> None:
    """An unknown exercise or quiz names those there are."""
    with pytest.raises(InvalidRequest, match="04-1"):
        desk.check("99-1", print)
    with pytest.raises(InvalidRequest, match="Take one of"):
        quiz("99")


def test_a_damaged_record_is_put_aside(folder: Path) -> None:
    """A file that can't be read is kept under another name, and the work goes on."""
    folder.mkdir()
    (folder / "progress.json").write_text('{"passed": [', encoding="utf-8")
    desk.check("04-1", ...)
    assert (folder / "progress.damaged.json").read_text(encoding="utf-8") == '{"passed": ['
    assert Record.read().tried == {"04-1": 1}


def test_the_record_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while it is written leaves the old record."""
    Record.change(lambda record: record.passed.append("04-1"))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            Record.change(lambda record: record.passed.append("04-2"))
    assert Record.read().passed == ["04-1"]


def test_a_file_that_is_held_for_a_moment_is_replaced_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a virus scanner does on Windows; one that is held for long is said, the old text kept."""
    replace, refusals = Path.replace, iter([True, True, False])

    def held(new: Path, old: Path) -> Path:
        if next(refusals, True):
            raise PermissionError(13, "held")
        return replace(new, old)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    file = tmp_path / "kept.json"
    sheets.write_whole(file, "one")
    with pytest.raises(PermissionError, match="Another program holds it"):
        sheets.write_whole(file, "two")
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_verdict_is_given_where_nothing_can_be_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is judged all the same, and one line says what is not kept."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("foundry_lab.checks.record.write_whole", refuse)
    desk.check("04-1", ...)
    printed = capsys.readouterr().out
    assert "Your progress is not saved: [Errno 13] Permission denied" in printed
    assert "04-1 ✗" in printed


def test_progress_counts_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    """What is done is no longer left; the panel says the same after a click."""
    everything = exercises()
    left = sum(one.minutes for one in everything)
    assert f"0 of {len(everything)} done, {left} minutes left" in progress_text()
    panel = progress()
    Record.change(lambda record: record.passed.append("04-1"))
    button, text = panel.children
    button.click()
    left -= exercise("04-1").minutes
    assert f"1 of {len(everything)} done, {left} minutes left" in text.value
    assert "0 of" in capsys.readouterr().out


# --- a learner's files -----------------------------------------------------------------------


def edited(path: Path) -> None:
    """Do what a learner does: write an answer, add a cell, delete one."""
    notebook: Any = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id == "ex-04-1-answer":
            cell.source = "my_work = 1"
    notebook.cells = [cell for cell in notebook.cells if cell.id != "ex-04-1-check"]
    notebook.cells.append(nbformat.v4.new_code_cell("my_own_cell = 2"))
    nbformat.write(notebook, path)


def test_reset_restores_one_exercise_and_keeps_a_backup() -> None:
    """Its cells are as they came, links too, and a deleted one is back; nothing else changed."""
    copy_sheets()
    path = mine() / exercise("04-1").sheet
    original = nbformat.read(path, as_version=4).cells
    for target in re.findall(r"\]\((\.\.[^)#]+)", original[0].source):
        assert (path.parent / target).exists(), target
    edited(path)
    before = path.read_bytes()
    backup = reset("04-1")
    now = nbformat.read(path, as_version=4).cells
    assert [cell.source for cell in now[:-1]] == [cell.source for cell in original]
    assert now[-1].source == "my_own_cell = 2"
    assert backup.read_bytes() == before


def test_reset_says_what_it_cannot_read(folder: Path) -> None:
    """A copy that is no notebook any more is kept, and the error says where."""
    copy_sheets()
    path = folder / exercise("04-1").sheet
    path.write_text("not JSON", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="is no notebook any more") as caught:
        reset("04-1")
    (backup,) = (folder / "backups").iterdir()
    assert str(backup) in str(caught.value)
    assert path.read_text(encoding="utf-8") == "not JSON"


def test_copies_are_never_overwritten() -> None:
    """A second copying leaves the learner's work as it is."""
    made = copy_sheets()
    edited(made[0])
    before = made[0].read_bytes()
    assert copy_sheets() == []
    assert made[0].read_bytes() == before


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_an_update_by_git_keeps_the_learners_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git pull of changed sheets goes through, and leaves copies, progress and backups alone."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def git(*arguments: str, at: Path) -> None:
        command = [str(shutil.which("git")), "-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run([*command, *arguments], cwd=at, check=True, capture_output=True)

    ignore = Path(__file__).parent.parent / ".gitignore"
    (origin / "exercises").mkdir(parents=True)
    shutil.copyfile(ignore, origin / ".gitignore")
    sheet = origin / "exercises" / exercise("04-1").sheet
    shutil.copyfile(sheets.SHEETS / sheet.name, sheet)
    git("init", "-q", at=origin)
    git("add", "-A", at=origin)
    git("commit", "-qm", "one", at=origin)
    git("clone", "-q", str(origin), str(clone), at=tmp_path)
    monkeypatch.setattr(sheets, "SHEETS", clone / "exercises")
    monkeypatch.delenv("FOUNDRY_EXERCISES")
    copy_sheets()
    edited(mine() / sheet.name)
    reset("04-1")
    Record.change(lambda record: record.passed.append("04-1"))
    before = {path: path.read_bytes() for path in mine().rglob("*.*")}
    sheet.write_text(sheet.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    git("commit", "-qam", "two", at=origin)
    git("pull", "-q", at=clone)
    assert (clone / "exercises" / sheet.name).read_bytes() == sheet.read_bytes()
    assert {path: path.read_bytes() for path in mine().rglob("*.*")} == before
    assert len(before) == 3


def test_the_command_line() -> None:
    """exercises, progress and reset, as a learner types them."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "foundry_lab", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert run("exercises").startswith("New in ")
    assert run("exercises") == ""
    assert "0 of" in run("progress")
    assert "04-1 is as it came" in run("reset", "04-1")
    assert json.loads((mine() / exercise("04-1").sheet).read_text(encoding="utf-8"))["cells"]


# --- quizzes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", QUIZZES)
def test_every_choice_teaches(lesson: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each question one choice is right, and each has a sentence of its own."""
    asked = questions(lesson)
    assert 6 <= len(asked) <= 10
    for number, question in enumerate(asked[:-1], 1):
        assert len(question.choices) >= 3
        told = [question.told(letter) for letter in LETTERS[: len(question.choices)]]
        assert [right for right, _ in told].count(True) == 1
        assert len({why for _, why in told}) == len(told)
        quiz(lesson, number, question.right)
    assert len(Record.read().quizzes[lesson]) == len(asked) - 1
    assert "✗" not in capsys.readouterr().out
    assert len({question.right for question in asked}) > 2


@pytest.mark.parametrize("lesson", QUIZZES)
def test_the_last_question_needs_code(lesson: str) -> None:
    """It asks for a number; near misses have sentences of their own, and so has any other."""
    last = questions(lesson)[-1]
    assert not last.choices
    assert last.told(float(last.right)) == (True, last.why)
    assert last.near
    for wrong, text in [*last.near, ("-7.5", last.otherwise)]:
        assert last.told(wrong) == (False, text)
        assert text
    with pytest.raises(InvalidRequest, match="no number"):
        last.told("many")


def test_every_lesson_has_its_quiz() -> None:
    """00 to 08; and a choice that does not exist is refused with those that do."""
    assert [f"{number:02}" for number in range(9)] == QUIZZES
    with pytest.raises(InvalidRequest, match="a, b, c"):
        quiz("00", 1, "z")
    with pytest.raises(InvalidRequest, match="from 1 to"):
        quiz("00", 99)


def test_a_folder_is_the_same_from_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A notebook and a terminal stand in different folders and mean one folder."""
    monkeypatch.setenv("FOUNDRY_EXERCISES", "work")
    before = mine().resolve()
    monkeypatch.chdir(tmp_path)
    assert mine().resolve() == before
    monkeypatch.setenv("FOUNDRY_EXERCISES", "~/work")
    assert mine() == Path.home() / "work"


def test_a_verdict_comes_where_no_progress_can_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in its place, or a damaged file, which is put aside, costs no verdict."""
    (folder / "progress.json").mkdir(parents=True)
    desk.check("04-1", ...)
    printed = capsys.readouterr().out
    assert "Your progress can't be read" in printed
    assert "04-1 ✗" in printed
    (folder / "progress.json").rmdir()
    (folder / "progress.json").write_text("{")
    desk.check("04-1", ...)
    assert "it is kept in" in capsys.readouterr().out
    assert (folder / "progress.damaged.json").read_text() == "{"


def test_a_folder_on_another_drive_gets_whole_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is no way from D: to C: that a relative link could go."""

    def no_way(*_: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", no_way)
    copies = copy_sheets()
    assert copies
    assert f"]({sheets.SHEETS.parent.as_uri()}/" in copies[0].read_text(encoding="utf-8")


def test_endless_is_no_right_number() -> None:
    """The tolerance is that of the right answer, not of what was handed in."""
    numbers = [one for one in questions("01") if not one.choices]
    assert numbers
    assert not numbers[0].told(float("inf"))[0]
