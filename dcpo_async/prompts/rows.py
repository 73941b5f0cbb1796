"""Rows of problem sets from files, folders and the hub, of which only the columns that are needed are read."""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dcpo_async.errors import DatasetError
from dcpo_async.prompts.presets import FILE_SUFFIXES, ProblemSource

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Row = Mapping[str, object]


class Rows:
    """The rows of a source, in its order; iterating reads it.

    Attributes:
        fields: the names of all columns met so far, also of those that are not read.

    Raises DatasetError, naming file, row and field, where something needed cannot be read.
    """

    def __init__(self, source: ProblemSource, columns: Collection[str]) -> None:
        self.fields: set[str] = set()
        self._source = source
        self._columns = columns

    def __iter__(self) -> Iterator[Row]:
        path = Path(self._source.location).expanduser()
        if self._source.is_file:
            if not path.is_file():
                raise DatasetError(
                    f"data file {self._source.location} does not exist (looked in {Path.cwd()}); check the path"
                )
            return self._file(path)
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return self._data_set(_saved(path, self._source.split))
        if path.is_dir():
            return chain.from_iterable(map(self._file, _files_of(self._source, path)))
        return self._data_set(_from_hub(self._source))

    def _file(self, path: Path) -> Iterator[Row]:
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        readers: dict[str, Callable[[Path], Iterator[Row]]] = {
            ".parquet": self._parquet,
            ".arrow": self._arrow,
            ".csv": self._csv,
            ".tsv": self._csv,
            ".json": self._json,
            ".jsonl": self._json,
        }
        if suffix not in readers:
            raise DatasetError(f"{path} is of no kind that is read; give one of {', '.join(FILE_SUFFIXES)}")
        try:
            yield from readers[suffix](path)
        except (OSError, EOFError) as error:
            raise DatasetError(f"{path} cannot be read: {error}") from error

    def _wanted(self, row: Row) -> Row:
        self.fields.update(row)
        return {column: row[column] for column in self._columns if column in row}

    def _json(self, path: Path) -> Iterator[Row]:
        with _text(path) as lines:
            start = lines.read(1)
            while start.isspace():
                start = lines.read(1)
            if start == "[":
                yield from self._json_array(path, start + lines.read())
                return
            for number, line in enumerate(chain([start + lines.readline()], lines), start=1):
                if line.strip():
                    row = self._wanted(_json_row(path, number, line))
                    _refuse_other_encodings(path, number, line, row)
                    yield row

    def _json_array(self, path: Path, text: str) -> Iterator[Row]:
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: malformed JSON ({error}); it must be one array of objects") from error
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise DatasetError(f"{path}, row {number}: found {type(row).__name__}; each row must be a JSON object")
            wanted = self._wanted(row)
            _refuse_other_encodings(path, number, text, wanted)
            yield wanted

    def _csv(self, path: Path) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)
        delimiter = "\t" if ".tsv" in path.suffixes else ","
        with _text(path) as lines:
            try:
                for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), start=1):
                    wanted = self._wanted({field: value for field, value in row.items() if field is not None})
                    _refuse_other_encodings(path, number, None, wanted)
                    yield wanted
            except csv.Error as error:
                raise DatasetError(f"{path} is no readable csv file: {error}") from error

    def _parquet(self, path: Path) -> Iterator[Row]:
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(path) as file:
                self.fields.update(file.schema_arrow.names)
                columns = [name for name in file.schema_arrow.names if name in self._columns]
                yield from _batches(str(path), file.iter_batches(columns=columns))
        except ArrowException as error:
            raise DatasetError(f"{path} is not a readable parquet file: {error}") from error

    def _arrow(self, path: Path) -> Iterator[Row]:
        from pyarrow import ArrowException, ipc, memory_map

        try:
            with memory_map(str(path)) as file:
                try:
                    table = ipc.open_stream(file).read_all()
                except ArrowException:
                    file.seek(0)
                    table = ipc.open_file(file).read_all()
                self.fields.update(table.column_names)
                kept = table.select([name for name in table.column_names if name in self._columns])
                yield from _batches(str(path), iter(kept.to_batches()))
        except ArrowException as error:
            raise DatasetError(f"{path} is not a readable arrow file: {error}") from error

    def _data_set(self, dataset: "Dataset") -> Iterator[Row]:
        self.fields.update(dataset.column_names)
        columns = [name for name in dataset.column_names if name in self._columns]
        kept = dataset.select_columns(columns)
        if "Json(" in str(kept.features):
            # Columns of mixed types are kept as JSON text; the data set's own iterator takes the values out.
            yield from kept
            return
        batches = kept.with_format("arrow").iter(batch_size=1000)
        yield from _batches(self._source.location, chain.from_iterable(table.to_batches() for table in batches))


def _saved(path: Path, split: str) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"saved data set {path} cannot be read: {error}") from error
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise DatasetError(f"saved data set {path} has no split {split}; set split to one of {', '.join(found)}")
    return found[split]


def _files_of(source: ProblemSource, path: Path) -> list[Path]:
    """The files of a split, by the rules of the hub: names of splits in the paths, or what its README.md says."""
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(str(path), source.subset).config.data_files or {}
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error
    if source.split not in files:
        raise _unloadable(source, f"its splits are {', '.join(map(str, files)) or 'none'}")
    return [Path(file) for file in files[source.split]]


def _from_hub(source: ProblemSource) -> "Dataset":
    # Imported here because it takes a second and only hub data needs it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(source.location, source.subset, split=source.split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise _unloadable(source, error) from error


def _unloadable(source: ProblemSource, error: object) -> DatasetError:
    return DatasetError(
        f"data set {source.location!r} (subset {source.subset}, split {source.split}) cannot be loaded: {error}; "
        f"give a path ending in {', '.join(FILE_SUFFIXES)}, a folder, or the id of a Hugging Face data set"
    )


def _text(path: Path) -> IO[str]:
    """Bytes that are not UTF-8 become single surrogates, so that they matter only in the columns that are needed."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DatasetError(f"{path} is UTF-16 and not UTF-8 text; convert it")
    return opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _json_row(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}, line {number}: malformed JSON ({error}); each line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise DatasetError(f"{path}, line {number}: found a {type(row).__name__}; each line must be one JSON object")
    return row


def _refuse_other_encodings(path: Path, number: int, raw: str | None, row: Row) -> None:
    """`raw` is the text that the row was parsed from, which has a surrogate only where a byte was not UTF-8."""
    if raw is not None and is_text(raw):
        return
    for field, value in row.items():
        if not is_text(str(value)):
            raise DatasetError(f"{path}, row {number}, field {field} is not UTF-8 text; convert it")


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _batches(place: str, batches: Iterator["pyarrow.RecordBatch"]) -> Iterator[Row]:
    first = 1
    for batch in batches:
        columns = {
            name: _values(place, first, name, column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for offset in range(batch.num_rows):
            yield {name: values[offset] for name, values in columns.items()}
        first += batch.num_rows


def _values(place: str, first: int, name: str, column: "pyarrow.Array") -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(place, first + offset, name, cell) for offset, cell in enumerate(column)]
    if any(kind in str(column.type) for kind in ("float", "halffloat")):
        return [_shortest(value, column.type) for value in values]
    return values


def _value(place: str, number: int, name: str, cell: "pyarrow.Scalar") -> object:
    try:
        return cell.as_py()
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{place}, row {number}, field {name} cannot be read: {error}") from error


def _shortest(value: object, kind: "pyarrow.DataType") -> object:
    """A float32 or float16 as the shortest decimal that is that number: 12.34 and not 12.34000015258789."""
    import numpy
    from pyarrow import types

    if value is None:
        return None
    if types.is_float32(kind):
        return float(str(numpy.float32(value)))  # type: ignore[arg-type]
    if types.is_float16(kind):
        return float(str(numpy.float16(value)))  # type: ignore[arg-type]
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_shortest(item, kind.value_type) for item in value]
    if isinstance(value, dict) and types.is_struct(kind):
        return {field.name: _shortest(value.get(field.name), field.type) for field in kind}
    return value
