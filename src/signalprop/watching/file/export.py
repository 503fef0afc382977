"""A run as a table: pandas, polars, Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from signalprop.errors import MissingPackageError, SignalpropError

if TYPE_CHECKING:
    from signalprop.watching.file.reader import Run

#: values of a piece that is written at a time
PIECE = 4_000_000


def frame(run: Run, statistics: Sequence[str] | None, columns: int | None, package: str) -> Any:
    """See `Run.frame`.

    Args:
        run: an open run.
        statistics: names; None for all.
        columns: at most so many steps.
        package: `pandas` or `polars`.

    Returns:
        The table.

    Raises:
        SignalpropError: the package is neither.
    """
    if package not in ("pandas", "polars"):
        raise SignalpropError(f"package={package!r} is neither 'pandas' nor 'polars'")
    table = _package(package, f"a {package} table")
    data, names = _columns(run, statistics, columns=columns)
    if package == "polars":
        for key, (codes, texts) in names.items():
            data[key] = table.Series(texts, dtype=table.String).gather(codes)
    else:
        for key, (codes, texts) in names.items():
            kinds, places = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
            data[key] = table.Categorical.from_codes(places[codes], list(kinds))
    return table.DataFrame({key: data[key] for key in ("step", *names, *_numbers(data))})


def to_parquet(run: Run, path: Path) -> Path:
    """See `Run.to_parquet`; memory stays small whatever the length of the run.

    Args:
        run: an open run.
        path: the file to write.

    Returns:
        The path.

    Raises:
        SignalpropError: the run is empty, or the file cannot be written.
    """
    arrow, parquet = _package("pyarrow", "Parquet"), _package("pyarrow.parquet", "Parquet")
    names = run.statistics
    if not names:
        raise SignalpropError(f"{run.path} holds no statistics yet")
    one = run.sites[0].name
    first = run.values(names[0], sites=one).first
    width = max(1, PIECE // (len(run.sites) * len(names)))
    writer = None
    try:
        for begin in range(0, len(first), width):
            end = int(first[begin + width]) if begin + width < len(first) else int(first[-1]) + 1
            data, texts = _columns(run, names, limits=(int(first[begin]), end))
            made = {"step": arrow.array(data["step"])}
            for key, (codes, values) in texts.items():
                made[key] = arrow.array(values, arrow.string()).take(arrow.array(codes))
            made |= {key: arrow.array(data[key]) for key in _numbers(data)}
            table = arrow.table(made)
            writer = writer or parquet.ParquetWriter(str(path), table.schema)
            writer.write_table(table)
    except OSError as error:
        raise SignalpropError(f"{path} cannot be written ({error})") from error
    finally:
        if writer is not None:
            writer.close()
    return path


def _columns(
    run: Run,
    statistics: Sequence[str] | None,
    *,
    columns: int | None = None,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[dict[str, Any], dict[str, tuple[Any, list[str]]]]:
    """Numbers by name, and for texts of the sites the codes and what they stand for."""
    sites = run.sites
    data: dict[str, Any] = {}
    steps = np.zeros(0, np.int64)
    for name in run.statistics if statistics is None else statistics:
        found = run.values(
            name, [site.name for site in sites], limits[0], limits[1], columns=columns
        )
        # a run that is being written may have grown between two questions
        steps = found.first if not data or len(found.first) < len(steps) else steps
        data[name] = found.mean
    rows = len(steps)
    data = {name: mean[:rows].reshape(-1) for name, mean in data.items()}
    data["step"] = np.repeat(steps, len(sites))
    codes = np.tile(np.arange(len(sites)), rows)
    keys = ("name", "op", "kind", "model")
    texts = {
        "site" if key == "name" else key: (codes, [getattr(site, key) for site in sites])
        for key in keys
    }
    return data, texts


def _numbers(data: dict[str, Any]) -> list[str]:
    return [key for key in data if key not in ("step", "site", "op", "kind", "model")]


def _package(name: str, purpose: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        root = name.partition(".")[0]
        raise MissingPackageError(
            f"{purpose} needs the package {root}: pip install {root}"
        ) from error
