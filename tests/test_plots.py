"""Figures: title, units, n, words and numbers on each; nothing hidden, nothing left behind."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import colors, pyplot
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from foundry_lab import plots
from foundry_lab.errors import InvalidRequest
from foundry_lab.figures import PALETTE, Plot, styled
from foundry_lab.samples import Sample, Samples
from foundry_lab.stats import percentile

random.seed(1)
SLOW = [random.lognormvariate(3, 0.5) for _ in range(400)]
FEW = SLOW[:20]
RUN = Samples(
    (
        Sample(0, 0, 0.020, (0.010, 0.015), 4),
        Sample(1, 1, 1.040, (1.012,), 4),
        Sample(2, 2, 2.300, outcome="ReadTimeout"),
        Sample(3, 3, 3.001, outcome="BreakerOpen"),
        Sample(5, 5, 5.020, (5.010,), 4),
    )
)
PHASES = {
    "first": [("attempt", 0.0, 0.25), ("wait", 0.25, 0.5), ("attempt", 0.5, 1.0)],
    "second": [("attempt", 0.25, 0.375), ("decode", 0.375, 1.375)],
}
CHUNKS = [0.25, 0.375, 0.5, 1.0]


@dataclass
class Case:
    """A figure, and what must be found on it."""

    make: Callable[[], Plot]
    x: str
    y: str
    n: list[str]
    rows: list[tuple[str, ...]]
    words: str


def spread(name: str, values: list[float]) -> tuple[str, ...]:
    shown = (min(values), float(np.median(values)), max(values))
    return (name, str(len(values)), *(f"{value:.2f}" for value in shown))


def at(values: list[float], *qs: float) -> list[str]:
    return [f"{percentile(values, q).value:.2f}" for q in qs]


CASES = {
    "strip": Case(
        lambda: plots.strip_plot({"slow": SLOW, "few": FEW}, title="T", unit="ms"),
        *("ms, log scale", ""),
        ["n = 400", "n = 20"],
        [spread("slow", SLOW), spread("few", FEW)],
        f"slow: median {np.median(SLOW):.2f} ms; few: median {np.median(FEW):.2f} ms.",
    ),
    "ecdf": Case(
        lambda: plots.ecdf_plot({"slow": SLOW, "few": FEW}, title="T", unit="ms"),
        *("ms, log scale", "at or below, %"),
        ["n = 400", "n = 20"],
        [spread("slow", SLOW), spread("few", FEW)],
        f"slow: median {np.median(SLOW):.2f} ms; few: median {np.median(FEW):.2f} ms.",
    ),
    "percentile": Case(
        lambda: plots.percentile_plot({"slow": SLOW, "few": FEW}, title="T", unit="ms"),
        *("percentile, 1/(1 - p) on a log scale", "ms"),
        ["n = 400", "n = 20"],
        [
            ("slow", "400", *at(SLOW, 50, 90, 99), "needs n = 2,995"),
            ("few", "20", *at(FEW, 50), "needs n = 29", "needs n = 299", "needs n = 2,995"),
        ],
        f"few: p50 {at(FEW, 50)[0]}, p99 needs n = 299.",
    ),
    "timeline": Case(
        lambda: plots.timeline(
            RUN, title="T", states=[(2.3, "open"), (4, "half-open"), (5, "closed")]
        ),
        *("due, seconds since the run began", "latency, ms, log scale"),
        ["n = 5", "n = 3", "n = 1"],
        [
            spread("ok", [20, 40, 20]),
            spread("ReadTimeout", [300]),
            spread("BreakerOpen", [1]),
        ],
        "ReadTimeout: n = 1; BreakerOpen: n = 1; breaker open from 2.3 to 4 s;",
    ),
    "waterfall": Case(
        lambda: plots.waterfall(PHASES, title="T"),
        *("seconds", ""),
        ["n = 2"],
        [
            ("first", "0.750", "0.250", "0.000", "1.000"),
            ("second", "0.125", "0.000", "1.000", "1.125"),
        ],
        "In all attempt 0.875 s, wait 0.250 s, decode 1.000 s.",
    ),
    "amplification": Case(
        lambda: plots.amplification_plot({"one layer": [3, 3], "five": [243]}, title="T"),
        *("requests at the server per call, mean, log scale", ""),
        ["n = 2", "n = 1"],
        [("one layer", "2", "3.00", "3.00", "3.00"), ("five", "1", *["243.00"] * 3)],
        "one layer: 3.00 requests per call; five: 243.00 requests per call.",
    ),
    "load": Case(
        lambda: plots.load_plot({2: SLOW, 1: FEW}, title="T", load="requests/s", unit="ms"),
        *("requests/s", "latency, ms"),
        ["n ≥ 20"],
        [(*spread("1", FEW), "needs n = 59"), (*spread("2", SLOW), *at(SLOW, 95))],
        f"in requests/s. T. 1: median {np.median(FEW):.2f} ms; 2: median",
    ),
    "jitter": Case(
        lambda: plots.jitter_plot({"none": [1, 1, 1, 2], "full": [0.5, 1.5]}, title="T"),
        *("arrival, seconds (height: requests per 0.0075 s)", ""),
        ["n = 4", "n = 2"],
        [("none", "4", "3", "1.00", "2.00"), ("full", "2", "1", "0.50", "1.50")],
        "none: peak of 3 requests per 0.0075 s; full: peak of 1 ",
    ),
    "tokens": Case(
        lambda: plots.token_timeline(CHUNKS, title="T"),
        *("seconds since the request", "gap before it, ms"),
        ["n = 4"],
        [spread("first text after", [250]), spread("gap", [125, 125, 500])],
        "First text after 250.00 ms, then gaps of 125.00 ms in the median, 500.00 ms at most.",
    ),
}
each_figure = pytest.mark.parametrize("name", CASES)


@cache
def made(name: str) -> Plot:
    return CASES[name].make()


def axes_of(plot: Plot) -> Any:
    (axes,) = plot.figure.axes
    return axes


def texts(figure: Figure) -> list[Any]:
    found: list[Any] = figure.findobj(Text)
    return [text for text in found if text.get_text() and text.get_visible()]


@each_figure
def test_a_figure_names_what_it_shows(name: str) -> None:
    """Title, both axes with their units, and how many values stand behind each series."""
    case, plot = CASES[name], made(name)
    axes = axes_of(plot)
    assert axes.get_title(loc="left").startswith("T")
    assert (axes.get_xlabel(), axes.get_ylabel()) == (case.x, case.y)
    written = "\n".join(text.get_text() for text in texts(plot.figure))
    assert [n for n in case.n if n not in written] == []


@each_figure
def test_a_figure_has_words_and_its_numbers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The table's numbers are those of the input; the words go with the picture and the table."""
    case, plot = CASES[name], made(name)
    assert list(plot.rows) == case.rows
    assert {len(row) for row in plot.rows} == {len(plot.header)}
    data, metadata = plot._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"] == {"alt": plot.alt, "width": 640}
    assert data["text/plain"] == plot.alt
    assert ". T. " in plot.alt
    assert case.words in plot.alt
    plot.table()
    printed = capsys.readouterr().out
    assert " ".join(printed.split()).startswith(plot.alt)
    assert all(cell in printed for row in plot.rows for cell in row)


@each_figure
def test_a_figure_is_readable_at_640_pixels(name: str) -> None:
    """No letter is smaller than 12 pixels, and nothing sticks out of the picture."""
    figure = made(name).figure
    assert figure.get_figwidth() == 6.4
    assert min(text.get_fontsize() for text in texts(figure)) * 100 / 72 >= 12
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()


@each_figure
def test_a_figure_leaves_nothing_behind(name: str) -> None:
    """No figure stays open in pyplot and no setting is changed."""
    before = dict(matplotlib.rcParams)
    CASES[name].make()._repr_mimebundle_()
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_series_differ_without_their_colours() -> None:
    """Twelve series have twelve pairs of marker and line; their colours are Okabe and Ito's."""
    lines = styled({str(number): [1.0] for number in range(12)})
    assert len({(line.marker, line.style) for line in lines}) == 12
    assert len({(line.color, line.marker) for line in lines}) == 12
    assert {line.color for line in lines} == set(PALETTE)


def test_phases_differ_without_their_colours() -> None:
    """Each kind of bar has a hatch of its own."""
    bars = axes_of(plots.waterfall(PHASES, title="T")).containers
    looks = {bar.get_label(): bar.patches[0].get_hatch() for bar in bars}
    assert set(looks) == {"attempt", "wait", "decode"}
    assert len(set(looks.values())) == 3


def test_the_percentile_line_is_dotted_where_nobody_knows() -> None:
    """Of 400 values all beyond p99.25 is dotted: 0.05^(1/400) is 0.9925."""
    axes = axes_of(plots.percentile_plot({"slow": SLOW}, title="T", unit="ms"))
    sure, unsure, maximum = axes.lines
    assert unsure.get_linestyle() == ":"
    assert 1 - 1 / max(sure.get_xdata()) == pytest.approx(0.05 ** (1 / 400), abs=1 / 400)
    assert list(maximum.get_ydata()) == [max(SLOW)]
    assert [*sure.get_ydata(), *unsure.get_ydata()[1:]] == sorted(SLOW)
    odds = [*sure.get_xdata(), *unsure.get_xdata()[1:]]
    assert odds == [400 / (400 - smaller) for smaller in range(400)]


def test_the_ecdf_reaches_each_value_at_its_share() -> None:
    """At the i-th smallest value the line rises to i/n."""
    line = axes_of(plots.ecdf_plot({"few": FEW}, title="T", unit="ms")).lines[0]
    steps = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert steps == {value: rank / 20 for rank, value in enumerate(sorted(FEW), 1)}


def test_every_request_is_on_the_timeline_and_every_state_is_a_band() -> None:
    """Points by outcome, when they were due; bands while the breaker was not closed."""
    plot = made("timeline")
    axes = axes_of(plot)
    points = {
        (float(x), float(y))
        for line in axes.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert points == {(row.intended, 1000 * row.latency) for row in RUN}
    bands = {band.get_label(): band.get_x() for band in axes.patches}
    assert bands == {"breaker open": 2.3, "breaker half-open": 4}


def test_what_a_log_scale_would_hide_is_shown_on_a_linear_one() -> None:
    """A breaker that fails in no measurable time is not left out of the figure."""
    instant = Samples((Sample(0, 0, 0, outcome="BreakerOpen"), Sample(0, 0, 1)))
    axes = axes_of(plots.timeline(instant, title="T"))
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "latency, ms")


def test_a_load_without_enough_requests_has_no_p95() -> None:
    """Its point is missing; median and range are there."""
    axes = axes_of(made("load"))
    medians, tails = axes.lines
    assert list(medians.get_xdata()) == [1, 2]
    assert [math.isnan(tail) for tail in tails.get_ydata()] == [True, False]
    (band,) = (item for item in axes.collections if isinstance(item, PolyCollection))
    assert band.get_datalim(axes.transData).ymax == pytest.approx(max(SLOW))


def test_jitter_is_compared_on_one_scale() -> None:
    """The same bins and the same height for a request in every row."""
    axes = axes_of(made("jitter"))
    heights = [np.ptp(item.get_paths()[0].vertices[:, 1]) for item in axes.collections]
    assert heights[0] == pytest.approx(3 * heights[1])


def test_a_token_timeline_shows_every_gap() -> None:
    """A point at each piece, as high as the gap before it; the first piece is a line."""
    points, first = axes_of(made("tokens")).lines
    assert list(points.get_xdata()) == CHUNKS[1:]
    assert list(points.get_ydata()) == [1000 * (b - a) for a, b in pairwise(CHUNKS)]
    assert list(first.get_xdata()) == [CHUNKS[0]] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.strip_plot({}, title="T", unit="ms"),
        lambda: plots.ecdf_plot({"a": []}, title="T", unit="ms"),
        lambda: plots.percentile_plot({"a": [1, math.nan]}, title="T", unit="ms"),
        lambda: plots.timeline(Samples(()), title="T"),
        lambda: plots.waterfall({}, title="T"),
        lambda: plots.amplification_plot({"a": []}, title="T"),
        lambda: plots.load_plot({1: []}, title="T", load="users", unit="ms"),
        lambda: plots.jitter_plot({"full": [math.inf]}, title="T"),
        lambda: plots.token_timeline([], title="T"),
        lambda: plots.token_timeline([0.1], title="T"),
    ],
)
def test_nothing_to_draw_is_refused(make: Callable[[], Plot]) -> None:
    """An empty picture, or one with values missing, would say something that is not so."""
    with pytest.raises(InvalidRequest):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.strip_plot({"a": [1]}, title="T", unit="ms"),
        lambda: plots.ecdf_plot({"a": [1]}, title="T", unit="ms"),
        lambda: plots.percentile_plot({"a": [1]}, title="T", unit="ms"),
        lambda: plots.amplification_plot({"a": [1]}, title="T"),
        lambda: plots.load_plot({1: [1]}, title="T", load="users", unit="ms"),
        lambda: plots.jitter_plot({"a": [1]}, title="T"),
        lambda: plots.token_timeline([0, 0], title="T"),
    ],
)
def test_one_value_is_drawn_without_a_warning(make: Callable[[], Plot]) -> None:
    """Warnings are errors here, so the smallest figure of each kind has to be a clean one."""
    assert make()._repr_mimebundle_()


def test_colours_stand_out_from_white() -> None:
    """On the picture's white ground a filled mark has a contrast of 2 : 1 at least (WCAG)."""
    for color in PALETTE:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in colors.to_rgb(color)
        ]
        luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
        assert 1.05 / (luminance + 0.05) >= 2


def test_a_title_is_text_and_no_formula() -> None:
    """What a learner types stands there as it is, dollars and backslashes too."""
    title = r"What does $\foo$ mean for $5?"
    for make in (plots.strip_plot, plots.ecdf_plot):
        figure = make({r"$\bar$": [1.0, 2.0]}, title=title, unit="ms").figure
        figure.canvas.draw()
        shown = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert len(shown) >= 2
        assert not any(text.get_parse_math() for text in shown)


def test_a_legend_stays_inside_the_picture() -> None:
    """Six outcomes with long names, or one name that is a sentence."""
    outcomes = ["ok", "ServiceUnreachable", "DeadlineExceeded", "StreamInterrupted", "BreakerOpen"]
    rows = [Sample(i, i, i + 1, outcome=outcome) for i, outcome in enumerate(outcomes)]
    states = [(1.0, "open"), (2.0, "half-open"), (3.0, "closed")]
    for figure in (
        plots.timeline(Samples(tuple(rows)), title="T", states=states).figure,
        plots.ecdf_plot({"a name like a sentence " * 4: [1.0, 2.0]}, title="T", unit="s").figure,
    ):
        figure.canvas.draw()
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1


def test_small_values_keep_their_digits() -> None:
    """Seconds of a fast service are not 0.00."""
    plot = plots.ecdf_plot({"a": [0.0021, 0.0032, 0.0041]}, title="T", unit="s")
    assert "a: median 0.0032 s" in plot.alt
