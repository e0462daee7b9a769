"""What a load run records: one row for every request, and the measures that are read off it."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from foundry_lab.errors import InvalidRequest, nearest_names

__all__ = ["Phase", "Sample", "Samples"]

Phase = tuple[str, float, float]
"""Its name, when it began, when it ended."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are seconds since the run began, on a clock that never goes back.

    TTFT, ITL and TPOT are defined as in vLLM (``vllm/benchmarks/serve.py``). Other tools mean other
    things by these names: AIPerf's ITL is our `tpot`; GuideLLM's TPOT and llmperf's ITL divide
    the whole latency, first token included, by all n tokens.
    """

    intended: float
    """When it was due. In a closed loop: when a user was free to ask."""
    started: float
    """When it was sent; the same as `ended` if it never was."""
    ended: float
    """When the answer was complete, or the call failed."""
    chunk_times: tuple[float, ...] = field(default=(), repr=False)
    """When each piece of text arrived. A piece is not a token."""
    tokens: int | None = None
    """Tokens of the answer as the service counted them; None if it did not say."""
    attempts: int = 1
    """How often it was tried; see `count_attempts`."""
    outcome: str = "ok"
    """``ok``, or the name of the error's class."""

    @property
    def first_token(self) -> float:
        """When the first text arrived; nan if none did, or the call is not a stream."""
        return self.chunk_times[0] if self.chunk_times else math.nan

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.intended

    @property
    def ttft(self) -> float:
        """Time to first token: seconds from when it was due to the first text; nan without one.

        vLLM also takes an empty first chunk for it, which this service always sends.
        """
        return self.first_token - self.intended

    @property
    def gaps(self) -> tuple[float, ...]:
        """ITL, inter-token latency: seconds between each piece of text and the one before."""
        return tuple(later - earlier for earlier, later in pairwise(self.chunk_times))

    @property
    def tpot(self) -> float:
        """Time per output token: (latency - TTFT) / (tokens - 1), in seconds; nan below two."""
        if self.tokens is None or self.tokens < 2:
            return math.nan
        return (self.latency - self.ttft) / (self.tokens - 1)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What the time went into: a row of `foundry_lab.plots.waterfall`.

        ``wait`` until it was sent, ``first token`` and ``decode`` of a stream or else ``answer``;
        the last of a failure has the name of the error.
        """
        ends = [("wait", self.started)]
        if self.chunk_times:
            ends.append(("first token", self.first_token))
        last = "decode" if self.chunk_times else "answer"
        ends.append((last if self.outcome == "ok" else self.outcome, self.ended))
        begins = [self.intended, *(end for _, end in ends)]
        spans = zip(ends, begins, strict=False)
        return tuple((name, begin, end) for (name, end), begin in spans if end > begin)


FIELDS = [one.name for one in fields(Sample)]
COLUMNS = (
    *("intended", "started", "first_token", "ended", "latency", "ttft", "tpot", "gaps"),
    *("tokens", "attempts", "outcome"),
)


@dataclass(frozen=True, repr=False)
class Samples:
    """What a run recorded: a row for every request, failures included, in the order of the plan."""

    rows: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.rows)

    def __repr__(self) -> str:
        outcomes = Counter(row.outcome for row in self.rows).most_common()
        told = ", ".join(f"{times} {outcome}" for outcome, times in outcomes)
        return f"<{len(self)} samples: {told or 'none'}>"

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one value of every row; of ``gaps``, all gaps of all rows. Unknown times are nan.

        Raises:
            InvalidRequest: There is no such column.
        """
        if name not in COLUMNS:
            raise InvalidRequest(f"No column {name!r}.", fix=nearest_names(name, COLUMNS))
        if name == "gaps":
            return np.array([gap for row in self.rows for gap in row.gaps])
        kind = str if name == "outcome" else float
        return np.array([getattr(row, name) for row in self.rows], dtype=kind)

    @property
    def successes(self) -> Self:
        """The rows whose outcome is ``ok``."""
        return type(self)(tuple(row for row in self.rows if row.outcome == "ok"))

    @property
    def failures(self) -> Self:
        """The rows of all others."""
        return type(self)(tuple(row for row in self.rows if row.outcome != "ok"))

    @property
    def throughput(self) -> float:
        """Answers per second: successes / (last end - first intended start), as in vLLM."""
        return self.goodput()

    def goodput(
        self, *, ttft: float | None = None, latency: float | None = None, tpot: float | None = None
    ) -> float:
        """Return the answers per second that met every objective given, all in seconds.

        What has no TTFT or no TPOT did not meet it, except that one token meets any TPOT.
        Source: vLLM's ``request_goodput``; Zhong et al., "DistServe", OSDI '24.
        """
        limits = {"ttft": ttft, "latency": latency, "tpot": tpot}
        if not self.rows:
            return 0.0
        span = max(row.ended for row in self.rows) - min(row.intended for row in self.rows)
        good = sum(_meets(row, limits) for row in self.successes)
        return good / span if span else math.nan

    def to_csv(self, path: str | Path) -> None:
        """Write the rows; `from_csv` reads them back without loss."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            for row in self.rows:
                times = " ".join(map(str, row.chunk_times))
                writer.writerow(asdict(row) | {"chunk_times": times})

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """Read what `to_csv` wrote.

        Raises:
            InvalidRequest: The file holds something else.
        """
        with Path(path).open(newline="", encoding="utf-8") as file, _reading(path):
            table = csv.DictReader(file)
            if table.fieldnames != FIELDS:
                raise ValueError("its first line names other columns")
            return cls(tuple(map(_from_text, table)))

    def to_json(self, path: str | Path) -> None:
        """Write the rows as a list of objects; `from_json` reads them back without loss."""
        Path(path).write_text(json.dumps([asdict(row) for row in self.rows]), "utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InvalidRequest: The file holds something else.
        """
        with _reading(path):
            rows = json.loads(Path(path).read_text("utf-8"))
            return cls(
                tuple(Sample(**{**row, "chunk_times": tuple(row["chunk_times"])}) for row in rows)
            )


def _meets(row: Sample, limits: Mapping[str, float | None]) -> bool:
    """An unknown time is nan, and nan is within no limit."""
    return all(
        limit is None or getattr(row, name) <= limit or (name == "tpot" and row.tokens == 1)
        for name, limit in limits.items()
    )


def _from_text(row: Mapping[str, str]) -> Sample:
    return Sample(
        intended=float(row["intended"]),
        started=float(row["started"]),
        ended=float(row["ended"]),
        chunk_times=tuple(map(float, row["chunk_times"].split())),
        tokens=int(row["tokens"]) if row["tokens"] else None,
        attempts=int(row["attempts"]),
        outcome=row["outcome"],
    )


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise InvalidRequest(
            f"{path} does not hold samples: {error}",
            fix="Read a file that to_csv or to_json wrote.",
        ) from error
