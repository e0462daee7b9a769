"""The exercise notebooks as files: what they hold, a learner's copies of them, and `reset`.

``exercises/NN_*.ipynb`` are the sheets as they come with the workbook, ``exercises/solutions/`` the
masters they are made from. A learner works in a copy, in ``exercises/mine/``, which no update of
the workbook touches.
"""

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from foundry_lab.errors import InvalidRequest

__all__ = [
    "BLOCK",
    "LINE",
    "Exercise",
    "copy_sheets",
    "exercise",
    "exercises",
    "mine",
    "reset",
    "write_whole",
]

SHEETS = Path(__file__).parents[2] / "exercises"
HEADER = re.compile(
    r"## (?P<name>\d\d-\d) · (?P<title>.+)\n\n"
    r"\| Difficulty \| Importance \| Minutes \|\n\|[-:|]+\|\n"
    r"\| (?P<difficulty>[●○]{3}) \| (?P<importance>[●○]{3}) \| (?P<minutes>\d+) \|"
)
HINT = re.compile(r"^- \*(?P<symptom>.+?)\* (?P<text>.+?)(?=\n- \*|\Z)", re.MULTILINE | re.DOTALL)

BLOCK = re.compile(
    r"(?P<depth>^ *)# BEGIN SOLUTION\n(?P<solution>.*?)"
    r"(?:^ *# BEGIN STUB\n(?P<stub>(?:^ *#.*\n)*?))?"
    r"^ *# END SOLUTION$",
    re.MULTILINE | re.DOTALL,
)
"""What stands in a master between the marks of a solution; ``tools/make_exercises.py`` says how."""
LINE = re.compile(r"^(?P<target>[^=\n]+=)(?P<value>.*)  # SOLUTION$", re.MULTILINE)
"""A line of a master that is a solution."""


def mine() -> Path:
    """The learner's folder: ``FOUNDRY_EXERCISES`` as seen from the workbook, or its own."""
    return SHEETS.parent / Path(os.environ.get("FOUNDRY_EXERCISES") or SHEETS / "mine").expanduser()


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its sheet describes it."""

    name: str
    """Lesson and number, such as ``04-2``."""

    title: str
    difficulty: str
    """One to three full dots: ``●●○``."""

    importance: str
    minutes: int
    sheet: str
    """The file name of its notebook."""

    @cached_property
    def hints(self) -> list[tuple[str, str]]:
        """Symptom and hint, from the vaguest to the plainest, without the solution."""
        (cell,) = [c for c in _master(self.sheet) if c["id"] == f"ex-{self.name}-hints"]
        return [(m["symptom"], " ".join(m["text"].split())) for m in HINT.finditer(_source(cell))]

    @property
    def solution(self) -> str:
        """The code of the master."""
        cells = [c for c in _master(self.sheet) if c["id"].startswith(f"ex-{self.name}-answer")]
        return "\n\n".join(_solved(_source(cell)).strip() for cell in cells)


def _solved(source: str) -> str:
    """A master's code without the marks."""
    source = BLOCK.sub(lambda block: block["solution"].removesuffix("\n"), source)
    return LINE.sub(r"\g<target>\g<value>", source)


def exercises() -> list[Exercise]:
    """All exercises, in order."""
    return [
        Exercise(
            found["name"],
            found["title"],
            found["difficulty"],
            found["importance"],
            int(found["minutes"]),
            sheet.name,
        )
        for sheet in sorted(SHEETS.glob("[0-9]*.ipynb"))
        for cell in _cells(sheet)
        if (found := HEADER.match(_source(cell)))
    ]


def exercise(name: str) -> Exercise:
    """The exercise of that name.

    Raises:
        InvalidRequest: There is none.
    """
    known = exercises()
    for one in known:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known)
    raise InvalidRequest(f"There is no exercise {name!r}.", fix=f"Take one of {names}.")


def copy_sheets() -> list[Path]:
    """Copy every sheet that the learner's folder does not have yet; give the new copies."""
    mine().mkdir(parents=True, exist_ok=True)
    wanted = {sheet: mine() / sheet.name for sheet in sorted(SHEETS.glob("[0-9]*.ipynb"))}
    missing = {sheet: copy for sheet, copy in wanted.items() if not copy.exists()}
    for sheet, copy in missing.items():
        write_whole(copy, _relinked(sheet.read_text(encoding="utf-8")))
    return list(missing.values())


def reset(name: str) -> Path:
    """Put one exercise back to how it came, in the learner's copy; give the backup of the whole.

    Cells that the learner has added stay where they are.

    Raises:
        InvalidRequest: There is no such exercise, or the copy is no notebook any more.
    """
    sheet = exercise(name).sheet
    copy_sheets()
    path = mine() / sheet
    backup = _backup(path)
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        fresh_text = _relinked((SHEETS / sheet).read_text(encoding="utf-8"))
        for fresh, before in _with_those_before(json.loads(fresh_text)["cells"]):
            if re.match(rf"ex-{name}(-|$)", fresh["id"]):
                _put(cells, fresh, before)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{path} is no notebook any more.",
            fix=f"Delete it and start.py makes a new one; what was in it is in {backup}.",
        ) from error
    write_whole(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return backup


def _relinked(text: str) -> str:
    """A sheet with links that lead to the same files from the learner's folder."""
    try:
        there = Path(os.path.relpath(SHEETS.parent, mine())).as_posix()
    except ValueError:  # on another drive of Windows
        there = SHEETS.parent.as_uri()
    return text.replace("](../", f"]({there}/")


def _backup(path: Path) -> Path:
    folder = path.parent / "backups"
    folder.mkdir(exist_ok=True)
    at = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")
    backup = folder / f"{path.stem}-{at}.ipynb"
    backup.write_bytes(path.read_bytes())
    return backup


def _with_those_before(cells: list[Any]) -> Iterator[tuple[Any, list[str]]]:
    ids = [cell["id"] for cell in cells]
    for place, cell in enumerate(cells):
        yield cell, ids[:place][::-1]


def _put(cells: list[Any], fresh: Any, before: list[str]) -> None:
    """Replace the cell of that id; where it was deleted, put it behind the nearest one before."""
    places = {cell.get("id"): place for place, cell in enumerate(cells)}
    if fresh["id"] in places:
        cells[places[fresh["id"]]] = fresh
    else:
        cells.insert(max([places[i] + 1 for i in before if i in places][:1], default=0), fresh)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, even after a crash, finds the old text or the new."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
    _replace(Path(new.name), path)


def _replace(new: Path, old: Path) -> None:
    """Put a file in the place of another; on Windows a virus scanner may hold that for a moment."""
    for _ in range(20):
        with suppress(PermissionError):
            new.replace(old)
            return
        time.sleep(0.05)
    new.unlink()
    raise PermissionError(errno.EACCES, "Another program holds it", str(old))


def _master(sheet: str) -> list[Any]:
    return _cells(SHEETS / "solutions" / sheet)


def _cells(path: Path) -> list[Any]:
    cells: list[Any] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def _source(cell: Any) -> str:
    return "".join(cell["source"])
