"""Exercises that check themselves: ``check``, ``hint``, ``quiz`` and ``progress``.

::

    check("04-2", my_function)   what was tried, what was expected, what happened
    hint("04-2")                 one hint; each call goes one step further, the solution last
    quiz("04")                   the questions of lesson 04
    quiz("04", 3, "b")           your answer to the third one
    progress()                   what is done, what is next, how many minutes are left

A grader (``lesson_04.py``) tries what you wrote. It never looks at how it is written.
"""

from foundry_lab.checks.desk import check, grade, hint
from foundry_lab.checks.panel import progress
from foundry_lab.checks.quiz import quiz

__all__ = ["check", "grade", "hint", "progress", "quiz"]
