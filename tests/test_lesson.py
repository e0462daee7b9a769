"""What the lessons lean on: expected errors, guesses, tables, figures with words."""

import subprocess
import sys

import pytest

from foundry_lab import compare, expect, strip_plot, table


def test_an_expected_error_is_printed_and_the_lesson_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its type and its message are shown."""
    with expect(ValueError, KeyError):
        raise ValueError("wrong")
    assert capsys.readouterr().out == "ValueError: wrong\n"


def test_an_error_that_does_not_come_fails() -> None:
    """A lesson that promises a failure goes red when nothing fails."""
    promised = "expected ValueError or KeyError, got none"
    with pytest.raises(AssertionError, match=promised), expect(ValueError, KeyError):
        pass


def test_another_error_than_the_expected_one_is_not_hidden() -> None:
    """Only what was promised is caught."""
    with pytest.raises(ZeroDivisionError), expect(ValueError):
        raise ZeroDivisionError


def test_a_guess_stands_beside_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """A guess of zero is a guess; only None is none."""
    compare(0, 404)
    compare(None, 404)
    with_guess, without = capsys.readouterr().out.splitlines()
    assert with_guess == "measured: 404   your guess: 0"
    assert without.startswith("measured: 404   (no guess")


def test_a_table_has_straight_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Each column starts at the same place in every line."""
    table(["name", "n"], [["a", 1], ["longer", None]])
    assert capsys.readouterr().out == "name    n\n──────  ────\na       1\nlonger  None\n"


def test_a_figure_says_in_words_and_numbers_what_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Picture, alt text and plain text come together; the table has the samples' own numbers."""
    plot = strip_plot({"slow": [30.0, 10.0, 20.0], "fast": [1.0, 2.0, 3.0]}, title="A", unit="ms")
    data, metadata = plot._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == data["text/plain"] == plot.alt
    assert "slow: median 20.00 ms; fast: median 2.00 ms" in plot.alt
    assert [label.get_text() for label in plot.figure.axes[0].get_yticklabels()] == [
        "slow\nn = 3",
        "fast\nn = 3",
    ]
    plot.table()
    words, header, _, slow, fast = capsys.readouterr().out.splitlines()
    assert words == plot.alt
    assert header.split() == ["n", "min", "ms", "median", "ms", "max", "ms"]
    assert slow.split() == ["slow", "3", "10.00", "20.00", "30.00"]
    assert fast.split() == ["fast", "3", "1.00", "2.00", "3.00"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Names are loaded when they are used: no httpx, pydantic, matplotlib or SDK at import."""
    heavy = "{'httpx', 'pydantic', 'matplotlib', 'foundry_local_sdk', 'psutil', 'tqdm'}"
    program = f"import sys, foundry_lab; print({heavy} & set(sys.modules), dir(foundry_lab))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("set() ")
    assert "FoundryAPIClient" in run.stdout


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    """hasattr, autocompletion and typos meet what Python promises."""
    import foundry_lab

    assert not hasattr(foundry_lab, "FoundryClient")
    assert all(hasattr(foundry_lab, name) for name in dir(foundry_lab))
