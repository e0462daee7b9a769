"""The exercises: graders accept what is right, refuse what is wrong, and say why in words.

The masters with the solutions run under nbval; here is what that does not see.
"""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
from answers import Answers
from make_exercises import EXERCISES, sheet_text, stub

from foundry_lab.checks import desk
from foundry_lab.checks.desk import grade
from foundry_lab.checks.sheets import Exercise, exercises

MASTERS = sorted((EXERCISES / "solutions").glob("[0-9]*.ipynb"))
ALL = exercises()

each_master = pytest.mark.parametrize("master", MASTERS, ids=lambda path: path.stem)
each_exercise = pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)


def answers(one: Exercise) -> Answers:
    given: dict[str, Answers] = import_module(f"answers.lesson_{one.name[:2]}").ANSWERS
    return given[one.name]


def cells(path: Path) -> list[Any]:
    read: list[Any] = nbformat.read(path, as_version=4).cells
    return read


def wrong_answers() -> list[Any]:
    return [
        pytest.param(one, answer, words, id=f"{one.name} {mistake}")
        for one in ALL
        for mistake, (answer, words) in answers(one).wrong.items()
    ]


@pytest.mark.parametrize(
    ("one", "answer"),
    [pytest.param(o, a, id=f"{o.name}-{n}") for o in ALL for n, a in enumerate(answers(o).right)],
)
def test_another_way_is_right_too(one: Exercise, answer: Any) -> None:
    """A correct answer passes, whatever it looks like."""
    wrong, _ = grade(one.name, answer)
    assert wrong is None, wrong and wrong.lines


@pytest.mark.parametrize(("one", "answer", "words"), wrong_answers())
def test_a_mistake_gets_its_own_words(one: Exercise, answer: Any, words: str) -> None:
    """A wrong answer fails, and the verdict says what happened."""
    wrong, _ = grade(one.name, answer)
    assert wrong is not None
    assert words in " ".join(wrong.lines.values())
    assert all(wrong.lines.values())


@each_exercise
def test_mistakes_differ_in_their_words(one: Exercise) -> None:
    """At least three mistakes, each known by words of its own; at least one other right answer."""
    words = [words for _, words in answers(one).wrong.values()]
    assert len(set(words)) == len(words) >= 3
    assert answers(one).right


@each_master
def test_a_sheet_is_in_step_with_its_master(master: Path) -> None:
    """`tools/make_exercises.py` would change nothing."""
    assert (EXERCISES / master.name).read_text(encoding="utf-8") == sheet_text(master)


@each_master
def test_an_unsolved_sheet_fails_every_check(
    master: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as it comes, a sheet stops nowhere but in its checks, and none of them passes."""
    monkeypatch.chdir(EXERCISES)
    names = [one.name for one in ALL if one.sheet == master.name]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(EXERCISES / master.name):
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), namespace)  # noqa: S102 - our own sheet
    printed = capsys.readouterr().out
    assert re.findall(r"^(\d\d-\d) ✗", printed, re.MULTILINE) == names
    assert "✓" not in printed


@each_master
def test_a_master_was_run_and_passes(master: Path) -> None:
    """Its stored outputs say that every solution passes; nbval shows that they still hold."""
    code = [cell for cell in cells(master) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    passed = re.findall(r"(\d\d-\d) ✓", str([cell.outputs for cell in code]))
    assert passed == [one.name for one in ALL if one.sheet == master.name]


@each_master
def test_a_master_is_kept_to_the_contract(master: Path) -> None:
    """Small cells with stable ids, valid for the oldest Python, bare metadata, no path."""
    notebook: Any = nbformat.read(master, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert (
        re.findall(r"/(?:home|root|tmp|Users|work)/\w+|[A-Z]:\\\\", master.read_text("utf-8")) == []
    )
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", cell.id), cell.id
        assert set(cell.metadata) <= {"tags"}, cell.id
        if cell.cell_type == "code":
            assert max(map(len, cell.source.splitlines())) <= 100, cell.id
            for source in (cell.source, stub(cell.source)):
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
                compile(source, cell.id, "exec", flags=flags, _feature_version=11)


@each_master
def test_links_lead_somewhere(master: Path) -> None:
    """Every link of a sheet to another file of the workbook exists."""
    for cell in cells(EXERCISES / master.name):
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (EXERCISES / target).exists() or target.startswith("mine/"), target


@each_exercise
def test_hints_lead_to_the_solution(one: Exercise) -> None:
    """Two hints or more, each under a symptom; then code without a mark of the tool."""
    assert len(one.hints) >= 2
    assert all(symptom and text for symptom, text in one.hints)
    assert one.solution
    assert "SOLUTION" not in one.solution
    assert "STUB" not in one.solution
    assert "NotImplementedError" not in one.solution


def test_every_exercise_has_a_grader() -> None:
    """And every grader an exercise."""
    graders = {
        name
        for lesson in {one.name[:2] for one in ALL}
        for name in import_module(f"foundry_lab.checks.lesson_{lesson}").GRADERS
    }
    assert graders == {one.name for one in ALL}


@each_exercise
def test_what_is_no_answer_at_all_is_refused(one: Exercise) -> None:
    """A number, a text, a function that takes nothing: each gets a verdict, nothing crashes."""
    for answer in (7.25, "yes", lambda: None):
        wrong, _ = grade(one.name, answer)
        assert wrong is not None, answer
    wrong, _ = grade(one.name, ...)
    assert wrong is not None
    assert wrong.lines["Happened"] == "there is nothing to check yet"


def test_check_prints_what_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed check says what was tried, expected and seen, and where help is."""
    desk.check("04-1", lambda *_: 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "04-1 ✗ Full jitter: not yet"
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "Tried",
        "Expected",
        "Happened",
        "Look at",
    ]
    assert 'hint("04-1") shows hint 1 of 4' in lines[-1]
