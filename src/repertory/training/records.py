"""``metrics.csv``: one row for every few steps of training and for every evaluation; also the run's curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from repertory.files import Replacement

POSITION = ("step", "epoch", "images", "seconds")


class MetricsFile:
    """Rows of numbers in a CSV file, columns ``step, epoch, images, seconds`` first, new columns as they come.

    Each row is on disk when ``append`` returns. ``keep_until(step)`` drops what a cut run wrote after its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.columns = list(POSITION)

    def keep_until(self, step: int) -> None:
        """Read the rows of an earlier run up to ``step`` and leave only these in the file."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row.get("step", step + 1) <= step]
            names = (name for row in self.rows for name in row)
            self.columns = list(dict.fromkeys([*POSITION, *names]))
            self._rewrite()

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row."""
        self.rows.append(dict(row))
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(_written(row))

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Each quantity as (images processed, value)."""
        return {
            name: [(row["images"], row[name]) for row in self.rows if name in row]
            for name in self.columns
            if name not in POSITION
        }

    def _rewrite(self) -> None:
        with Replacement(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(_written(row) for row in self.rows)


def _written(row: Mapping[str, float]) -> dict[str, str]:
    whole = ("step", "epoch", "images")
    return {k: str(int(v)) if k in whole else f"{v:.3f}" if k == "seconds" else repr(float(v)) for k, v in row.items()}
