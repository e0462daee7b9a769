"""The figures of the lessons: each has a title, units and n, its words and its numbers.

All functions raise `InvalidRequest` where there is nothing to draw or a value is not finite.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise

import numpy as np
from matplotlib.axes import Axes

from foundry_lab.figures import (
    HATCHES,
    PALETTE,
    Line,
    Plot,
    Series,
    legend,
    log_scale,
    mark,
    medians,
    new_figure,
    number,
    percentile_cell,
    percentile_or_nan,
    row_figure,
    spread_table,
    styled,
)
from foundry_lab.samples import Phase, Samples
from foundry_lab.stats import finite

__all__ = [
    "Plot",
    "amplification_plot",
    "ecdf_plot",
    "jitter_plot",
    "load_plot",
    "percentile_plot",
    "strip_plot",
    "timeline",
    "token_timeline",
    "waterfall",
]

BANDS = {"open": (PALETTE[1], "//"), "half-open": (PALETTE[4], "..")}
"""How a breaker's state is drawn. Closed is the normal one: no band."""


def strip_plot(samples: Series, *, title: str, unit: str) -> Plot:
    """Show every sample as a dot, one row a series, with a bar at the median.

    Args:
        samples: Series name → values.
        title: What is compared.
        unit: The values' unit, such as ``ms``.
    """
    lines = styled(samples)
    labels = [line.label for line in lines]
    figure, axes = row_figure(f"{title} (bar: median)", unit, labels, 0.55)
    for row, line in enumerate(lines):
        at = [row] * len(line.values)
        axes.scatter(line.values, at, color=line.color, marker=line.marker, alpha=0.5, s=28)
        axes.plot([line.median] * 2, [row - 0.3, row + 0.3], color="black", linewidth=2)
    log_scale(axes, "x", lines)
    alt = f"Strip plot. {title}. {medians(lines, unit)}."
    return Plot(figure, alt, *spread_table(lines, unit))


def ecdf_plot(samples: Series, *, title: str, unit: str) -> Plot:
    """Show the share of each series that is at or below a value: all that a small sample knows.

    Args:
        samples: Series name → values.
        title: What is compared.
        unit: The values' unit, such as ``ms``.
    """
    lines = styled(samples)
    figure, axes = new_figure(f"{title} (marker: median)", unit, "at or below, %")
    for line in lines:
        axes.ecdf(line.values, color=line.color, linestyle=line.style)
        mark(axes, line.median, 0.5, line)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    log_scale(axes, "x", lines)
    legend(axes)
    alt = f"ECDF. {title}. {medians(lines, unit)}."
    return Plot(figure, alt, *spread_table(lines, unit))


def percentile_plot(samples: Series, *, title: str, unit: str) -> Plot:
    """Show every percentile, with as much room for each further nine, as HdrHistogram does.

    Args:
        samples: Series name → values. The line is dotted where there are too few of them to tell.
        title: What is compared.
        unit: The values' unit, such as ``ms``.
    """
    lines, shown = styled(samples), (50, 90, 99, 99.9)
    figure, axes = new_figure(
        f"{title} (marker: max)", "percentile, 1/(1 - p) on a log scale", unit
    )
    for line in lines:
        _percentile_steps(axes, line)
    _show_nines(axes)
    legend(axes)
    rows = tuple(
        (line.name, str(len(line.values)), *(percentile_cell(line.values, q) for q in shown))
        for line in lines
    )
    words = "; ".join(f"{name}: p50 {p50}, p99 {p99}" for name, _, p50, _, p99, _ in rows)
    header = ("", "n", *(f"p{q} {unit}" for q in shown))
    return Plot(figure, f"Percentile plot, {unit}. {title}. {words}.", header, rows)


def _show_nines(axes: Axes) -> None:
    below = -0.03 * axes.get_ylim()[1]  # a line at zero is seen
    axes.set(xscale="log", xlim=(1, None), ylim=(below, None))
    nines = [q for q in (50, 90, 99, 99.9, 99.99) if 100 / (100 - q) < axes.get_xlim()[1]]
    axes.set_xticks([100 / (100 - q) for q in nines], [f"{q:g} %" for q in nines])
    axes.minorticks_off()


def _percentile_steps(axes: Axes, line: Line) -> None:
    n = len(line.values)
    odds = n / np.arange(n, 0, -1)  # 1/(1 - p) from where on the sample of that rank holds
    told = np.searchsorted(odds, 1 / (1 - 0.05 ** (1 / n)), side="right")  # see requests_needed
    axes.step(odds[:told], line.values[:told], line.style, color=line.color, where="post")
    axes.step(odds[told - 1 :], line.values[told - 1 :], ":", color=line.color, where="post")
    mark(axes, odds[-1], line.values[-1], line)


def timeline(samples: Samples, *, title: str, states: Sequence[tuple[float, str]] = ()) -> Plot:
    """Show the latency of every request at the time it was due, and how it ended.

    Args:
        samples: What a run recorded.
        title: What was run.
        states: The breaker's changes, as (seconds since the run began, the new state).
    """
    counts = Counter(row.outcome for row in samples).most_common()
    parts = {name: [row for row in samples if row.outcome == name] for name, _ in counts}
    lines = styled({name: [1000 * row.latency for row in part] for name, part in parts.items()})
    figure, axes = new_figure(
        f"{title}, n = {len(samples)}", "due, seconds since the run began", "latency, ms"
    )
    words = [f"{name}: n = {n}" for name, n in counts]
    words += _draw_bands(axes, [*states, (max(row.ended for row in samples), "")])
    for line, part in zip(lines, parts.values(), strict=True):
        x, y = [row.intended for row in part], [1000 * row.latency for row in part]
        axes.plot(x, y, line.marker, color=line.color, markersize=4, label=line.label)
    log_scale(axes, "y", lines)
    legend(axes)
    alt = f"Timeline. {title}. {'; '.join([*words, medians(lines, 'ms')])}."
    return Plot(figure, alt, *spread_table(lines, "ms"))


def _draw_bands(axes: Axes, states: Sequence[tuple[float, str]]) -> list[str]:
    spans = [(begin, end, state) for (begin, state), (end, _) in pairwise(states) if state in BANDS]
    for begin, end, state in spans:
        color, hatch = BANDS[state]
        axes.axvspan(begin, end, color=color, hatch=hatch, alpha=0.25, label=f"breaker {state}")
    return [f"breaker {state} from {begin:.3g} to {end:.3g} s" for begin, end, state in spans]


def waterfall(requests: Mapping[str, Sequence[Phase]], *, title: str) -> Plot:
    """Show what each request spent its time on, one row a request.

    Args:
        requests: Name of the request → its phases, such as an attempt, a wait, the first token,
            the decoding: each as (name, begin, end) in seconds. `Sample.phases` has this form.
        title: What was run.
    """
    finite(end for phases in requests.values() for _, _, end in phases)
    kinds = list(dict.fromkeys(kind for phases in requests.values() for kind, _, _ in phases))
    looks = dict(zip(kinds, zip(cycle(PALETTE), cycle(HATCHES), strict=False), strict=False))
    figure, axes = row_figure(f"{title}, n = {len(requests)}", "seconds", list(requests), 0.3)
    for row, phases in enumerate(requests.values()):
        for kind, begin, end in phases:
            color, hatch = looks[kind]
            axes.barh(row, end - begin, 0.7, begin, fc=color, hatch=hatch, ec="white", label=kind)
    legend(axes)
    spent = np.array([[_spent(phases, kind) for kind in kinds] for phases in requests.values()])
    rows = tuple(
        (name, *(f"{seconds:.3f}" for seconds in (*row, sum(row))))
        for name, row in zip(requests, spent, strict=True)
    )
    sums = zip(kinds, spent.sum(axis=0), strict=True)
    words = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in sums)
    alt = f"Waterfall of {len(rows)} requests. {title}. In all {words}."
    return Plot(figure, alt, ("", *(f"{kind} s" for kind in kinds), "sum s"), rows)


def _spent(phases: Sequence[Phase], wanted: str) -> float:
    return sum(end - begin for kind, begin, end in phases if kind == wanted)


def amplification_plot(requests: Series, *, title: str) -> Plot:
    """Show how many requests a server sees for each call that is made.

    Args:
        requests: What is compared → the number of requests at the server, for each call.
        title: What was run.
    """
    lines = styled(requests)
    means = [float(np.mean(line.values)) for line in lines]
    x = "requests at the server per call, mean"
    figure, axes = row_figure(title, x, [line.label for line in lines], 0.55)
    for row, (line, mean) in enumerate(zip(lines, means, strict=True)):
        axes.hlines(row, 1, mean, color=line.color, linewidth=3)
        axes.plot(mean, row, line.marker, color=line.color, markersize=9)
        axes.annotate(f"{mean:.4g}", (mean, row), (9, -4), textcoords="offset points")
    log_scale(axes, "x", lines)
    axes.margins(x=0.12)
    rows = tuple(
        (line.name, str(len(line.values)), *map(number, (line.values[0], mean, line.values[-1])))
        for line, mean in zip(lines, means, strict=True)
    )
    words = "; ".join(f"{name}: {mean} requests per call" for name, _, _, mean, _ in rows)
    header = ("", "calls", "min", "mean", "max")
    return Plot(figure, f"Retry amplification. {title}. {words}.", header, rows)


def load_plot(
    latencies: Mapping[float, Sequence[float]], *, title: str, load: str, unit: str
) -> Plot:
    """Show how latency grows with load, flat at first and then steep: the "hockey stick".

    Args:
        latencies: Load → the latencies under it. p95 is drawn where there are enough of them.
        title: What was run.
        load: What the load counts, such as ``requests/s``.
        unit: The latencies' unit, such as ``ms``.
    """
    x = sorted(latencies)
    lines = styled({str(at): latencies[at] for at in x})
    least = min(len(line.values) for line in lines)
    figure, axes = new_figure(f"{title}, n ≥ {least} at each load", load, f"latency, {unit}")
    lows, highs = [line.values[0] for line in lines], [line.values[-1] for line in lines]
    axes.fill_between(x, lows, highs, color=PALETTE[0], alpha=0.15, label="min to max")
    axes.plot(x, [line.median for line in lines], "o-", color=PALETTE[0], label="median")
    tails = [percentile_or_nan(line.values, 95) for line in lines]
    if not np.isnan(tails).all():
        axes.plot(x, tails, "^--", color=PALETTE[1], label="p95")
    axes.set_ylim(bottom=0)
    legend(axes)
    header, rows = spread_table(lines, unit, load)
    rows = tuple(
        (*row, percentile_cell(line.values, 95)) for row, line in zip(rows, lines, strict=True)
    )
    worst = "; ".join(f"{row[0]}: p95 {row[-1]}" for row in rows)
    alt = f"Latency against load, in {load}. {title}. {medians(lines, unit)}; {worst}."
    return Plot(figure, alt, (*header, f"p95 {unit}"), rows)


def jitter_plot(arrivals: Series, *, title: str) -> Plot:
    """Show when retries arrive, one row for each kind of jitter: a peak is a thundering herd.

    Args:
        arrivals: Kind of jitter → when each request arrives, in seconds.
        title: What was run.
    """
    lines = styled(arrivals)
    edges = np.histogram_bin_edges(np.concatenate([line.values for line in lines]), 200)
    counts = [np.histogram(line.values, edges)[0] for line in lines]
    unit = f"requests per {edges[1] - edges[0]:.2g} s"
    x, labels = f"arrival, seconds (height: {unit})", [line.label for line in lines]
    figure, axes = row_figure(title, x, labels, 0.8)
    for row, (line, count) in enumerate(zip(lines, counts, strict=True)):
        top = row + 0.4 - 0.7 * np.append(count, 0) / np.max(counts)
        axes.fill_between(edges, row + 0.4, top, step="post", color=line.color)
        axes.annotate(f"peak {max(count)}", (edges[np.argmax(count)], min(top)), va="bottom")
    rows = tuple(
        (line.name, str(len(line.values)), str(max(count)), *map(number, line.values[[0, -1]]))
        for line, count in zip(lines, counts, strict=True)
    )
    words = "; ".join(f"{name}: peak of {peak} {unit}" for name, _, peak, _, _ in rows)
    header = ("", "n", f"peak, {unit}", "first s", "last s")
    return Plot(figure, f"Arrivals over time. {title}. {words}.", header, rows)


def token_timeline(chunk_times: Sequence[float], *, title: str) -> Plot:
    """Show one stream: when each piece of text came, and how long after the one before.

    Args:
        chunk_times: When each piece came, in seconds since the request was due; two at least.
        title: What was asked.
    """
    times = np.array(chunk_times)
    gaps = 1000 * np.diff(times)
    lines = styled({"first text after": 1000 * times[:1], "gap": gaps})
    figure, axes = new_figure(
        f"{title}, n = {len(times)} pieces", "seconds since the request", "gap before it, ms"
    )
    axes.vlines(times[1:], 0, gaps, color=PALETTE[0], linewidth=1)
    axes.plot(times[1:], gaps, "o", color=PALETTE[0], markersize=4, label="piece of text")
    axes.axvline(times[0], color=PALETTE[1], linestyle="--", label="first piece (TTFT)")
    axes.set(xlim=(0, None), ylim=(0, None))
    legend(axes)
    first, gap = (number(line.median) for line in lines)
    words = f"First text after {first} ms, then gaps of {gap} ms in the median"
    alt = f"Token timeline. {title}. {words}, {number(max(gaps))} ms at most."
    return Plot(figure, alt, *spread_table(lines, "ms"))
