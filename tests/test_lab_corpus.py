"""The corpus of lab-tiny keeps training and examination apart, and teaches what it should."""

import random
from collections.abc import Callable

import pytest
from lab_corpus import asking, off_topic, samples
from lab_corpus.asking import Split
from lab_corpus.glossary import glossary
from lab_corpus.samples import Sample

N = 300
Maker = Callable[[Split, random.Random], Sample]


def drawn(make: Maker, split: Split = "train", n: int = N) -> list[Sample]:
    """Some samples of a kind, the same in every run."""
    rng = random.Random(1)  # noqa: S311 - repeatable, not secret
    return [make(split, rng) for _ in range(n)]


def test_nothing_held_out_is_trained() -> None:
    """No subject is known or examined, and no template stands on both sides."""
    off_topic.check_split()


def test_a_template_on_both_sides_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held-out template among the trained ones is refused, whatever its marks and capitals."""
    trained = asking.data("phrasings.toml")["train"]
    held_out: str = asking.data("phrasings.toml")["held_out"]["what"][0]
    monkeypatch.setitem(trained, "what", [*trained["what"], held_out.lower().rstrip(".") + "!"])
    with pytest.raises(ValueError, match="trained and held out"):
        off_topic.check_split()


@pytest.mark.parametrize("form", ["json", "five_words", "one_sentence"])
def test_held_out_entries_are_never_asked_in_their_form(form: str) -> None:
    """Training asks only the one group of entries for a form, the examination only the other."""
    held_out = {entry.term for entry in glossary() if samples.is_held_out(entry, form)}

    def make(split: Split, rng: random.Random) -> Sample:
        return samples.formed(form, split, rng)

    assert len(held_out) > len(glossary()) / 10
    assert not {sample.entry for sample in drawn(make)} & held_out
    assert {sample.entry for sample in drawn(make, "held_out")} <= held_out


@pytest.mark.parametrize("form", ["labelled", "few_words"])
def test_other_forms_are_asked_of_every_entry(form: str) -> None:
    """A form that holds out no entry has more than the usual four in five on both sides."""

    def make(split: Split, rng: random.Random) -> Sample:
        return samples.formed(form, split, rng)

    for split in ("train", "held_out"):
        asked = {sample.entry for sample in drawn(make, split, n=700)}
        assert len(asked) > 0.85 * len(glossary())


def test_ranges_of_the_examination_are_never_trained() -> None:
    """What is counted on one side is not on the other."""
    held_out = {sample.answer for sample in drawn(samples.counting, "held_out")}
    assert not {sample.answer for sample in drawn(samples.counting)} & held_out


def test_windows_of_a_count_are_in_order_and_end_with_its_end() -> None:
    """Windows begin at a number, do not overlap, and the last one holds the stop."""
    windowed = [sample for sample in drawn(samples.counting) if sample.windows]
    assert len(windowed) > N / 2
    for sample in windowed:
        numbers = sample.answer.split()
        bounds = [bound for window in sample.windows for bound in window]
        assert bounds == sorted(bounds)
        assert all(start % 2 == 0 and start < end for start, end in sample.windows)
        assert bounds[-1] == 2 * len(numbers)  # numbers, the blanks between them, and the stop
        assert bounds[-1] - bounds[-2] <= 8


def test_the_same_seed_gives_the_same_samples() -> None:
    """Training can be repeated."""

    def make(_split: Split, rng: random.Random) -> Sample:
        return samples.training_sample(rng)

    assert drawn(make) == drawn(make)
