"""Rows of a data set, one by one, from where they lie: a file, a prepared set, the hub, TFDS.

    for row in file_rows("sets/mine.jsonl"):
        print(row.where, row.value)     # "line 1" {"problem": …}

A line that cannot be read comes as a row too, with `wrong` saying why, so that whoever reads counts it.
"""

import csv
import gzip
import io
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from e3jax.errors import UserError, first_line
from e3jax.readers import json_lines, parse_json, read_bytes, read_json
from e3jax.storage import is_bucket, patiently, place

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")
PREPARED = "set.json"  # what a prepared set says about itself
RECORDS = "problems.array_record"
BATCH = 1024  # rows of a parquet file that are in memory at once
MOST_UNPACKED, MOST_RATIO = 1 << 30, 1000  # a parquet file that grows beyond both when it is unpacked is a bomb
MOST_GZIP_RATIO = 100  # the same for .gz, whose most is 1,032; texts reach 3 to 20


class Row(NamedTuple):
    """One row of a set; `wrong` is why it could not be read, and then there is no value."""

    where: str  # "line 3" of a JSONL file counts from 1, "row 2" of anything else from 0
    index: int  # from 0
    value: dict[str, Any]
    wrong: str = ""


def make_row(where: str, index: int, value: Any, wrong: str = "") -> Row:
    """Return the row of a value that was read; one that is no object or holds half a character is wrong."""
    if not wrong and not isinstance(value, dict):
        wrong = "not an object"
    if not wrong and has_half_character(value):
        wrong = "half a character (a lone surrogate), which is no Unicode text"
    return Row(where, index, {} if wrong else value, wrong)


def has_half_character(value: Any) -> bool:
    r"""Return whether a text in `value` cannot be written as UTF-8: JSON's "\ud800" without its other half.

    >>> has_half_character({"a": ["x\ud800"]}), has_half_character({"a": "\u20ac"})
    (True, False)
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            left += one
        elif isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                return True
    return False


def is_place(name: str) -> bool:
    """Return whether a set's name says where it lies (a path) and not which it is (a name or a hub id)."""
    if not name:
        return False
    return is_bucket(name) or name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES) or epath.Path(name).exists()


def place_rows(path: str, *, split: str, limit: int) -> Iterator[Row]:
    """Yield the rows of a file, of a prepared set (Problems without a prompt), or of a local copy of a hub's set."""
    there = place(epath.Path(path).expanduser())
    if not there.exists():
        raise UserError(f"{path} does not exist: name a {', '.join(SUFFIXES)} file or a directory")
    if there.is_dir() and not is_prepared(there):
        if is_bucket(path):
            raise UserError(
                f"{path} has no {PREPARED}: a directory in a bucket must be a set that e3jax.tools.prepare wrote"
            )
        return hub_rows(str(there), config="", split=split, limit=limit)
    if split:
        raise UserError(f"split={split!r}: {path} has no splits, leave it out")
    if there.is_dir():
        return PreparedSet(there).rows()
    return file_rows(there)


# ---- files


def file_rows(path: epath.PathLike) -> Iterator[Row]:
    """Yield the rows of a file of SUFFIXES, local or in a bucket; UserError for another one."""
    path = place(path)
    readers = {".json": json_rows, ".jsonl": jsonl_rows, ".csv": csv_rows, ".parquet": parquet_rows}
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}: rename or convert it")
    return readers[epath.Path(path.name.removesuffix(".gz")).suffix](path)


def unpacked_bytes(path: epath.Path) -> bytes:
    """Return the bytes of a file, of a .gz what it holds; UserError where that is damaged or a bomb."""
    data = read_bytes(path)
    if path.suffix != ".gz":
        return data
    most = max(MOST_UNPACKED, MOST_GZIP_RATIO * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({first_line(error)}): fetch it again, or rename it") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes when it is unpacked: this is no data set, remove it")
    return content


def csv_rows(path: epath.Path) -> Iterator[Row]:
    """Yield a row of texts a record, by the names in the first line; UserError where quotes or names are broken."""
    try:
        text = unpacked_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    csv.field_size_limit(sys.maxsize)  # of 128 KiB: a long response is longer
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = csv_records(reader, path)
    names = next(records, (0, []))[1]
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UserError(f"{path} line 1: its names are {', '.join(names)[:200]!r}: name each column once")
    for index, (line, cells) in enumerate(records):
        wrong = "" if len(cells) == len(names) else f"{len(cells)} cells, and the first line names {len(names)}"
        yield make_row(f"line {line}", index, dict(zip(names, cells)), wrong)


def csv_records(reader: Any, path: epath.Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that a record ends in, and its cells; blank lines are none."""
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV ({error}): quote what holds commas") from error


def jsonl_rows(path: epath.Path) -> Iterator[Row]:
    """Yield an object a line; blank lines are no rows."""
    for index, line in enumerate(json_lines(unpacked_bytes(path))):
        yield make_row(f"line {line.number}", index, line.value, line.wrong)


def json_rows(path: epath.Path) -> Iterator[Row]:
    """Yield the objects of a list."""
    try:
        values = parse_json(unpacked_bytes(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is {error}: mend it; with an object a line it must be named .jsonl") from error
    if not isinstance(values, list):
        raise UserError(f"{path} holds a {type(values).__name__}: a list of objects is needed")
    for index, value in enumerate(values):
        yield make_row(f"row {index}", index, value)


def parquet_rows(path: epath.Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, a batch in memory at a time."""
    parquet = needed("pyarrow.parquet", "pyarrow", "parquet files")
    with patiently(f"read {path}", lambda: path.open("rb")) as file:
        try:
            table = parquet.ParquetFile(file)
            groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
            unpacked = max((group.total_byte_size for group in groups), default=0)
        except Exception as error:  # pyarrow's own have no common base below ValueError and OSError
            raise UserError(f"{path} is no parquet file ({first_line(error)}): convert it, or rename it") from error
        if unpacked > max(MOST_UNPACKED, MOST_RATIO * path.stat().length):
            raise UserError(f"{path} has {unpacked:,} bytes when it is unpacked: this is no data set, remove it")
        batches, index = table.iter_batches(batch_size=BATCH), 0
        while (batch := next_batch(batches, path, index)) is not None:
            for i in range(batch.num_rows):
                try:
                    value, wrong = batch.slice(i, 1).to_pylist()[0], ""
                except UnicodeDecodeError as error:
                    value, wrong = {}, f"not UTF-8 ({error.reason})"
                except (ValueError, OverflowError) as error:  # a date beyond Python's, two columns of one name
                    value, wrong = {}, first_line(error)
                yield make_row(f"row {index}", index, value, wrong)
                index += 1


def next_batch(batches: Iterator, path: epath.Path, index: int) -> Any:
    """Return the next rows of a parquet file, None behind the last; UserError where the file is damaged."""
    try:
        return next(batches, None)
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged behind row {index} ({first_line(error)}): fetch it again") from error


def needed(module: str, package: str, what: str) -> Any:
    """Return a library that only some data needs; UserError when it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} need {package} ({error}): pip install {package}, or 'e3jax[data]'") from error


# ---- prepared sets: array_record, read at random


class PreparedSet(Sequence):
    """Objects of a prepared set by number, each read when it is asked for; a bucket's file is fetched once, whole.

    (array_record itself reads local files only.) ValueError for a record that cannot be read.
    """

    def __init__(self, directory: epath.PathLike):
        source = needed("array_record.python.array_record_data_source", "array_record", "prepared sets")
        directory = place(directory)
        self.about = read_json(directory / PREPARED, {"rows": int}, advice="prepare the set again")
        records = directory / RECORDS
        if is_bucket(str(directory)):
            self.fetched = tempfile.TemporaryDirectory(prefix="e3jax-set-")
            local = epath.Path(self.fetched.name) / RECORDS
            local.write_bytes(read_bytes(records))
            records = local
        try:
            self.records = source.ArrayRecordDataSource(str(records))
        except Exception as error:  # array_record's have no common base
            raise UserError(f"{records} cannot be read ({first_line(error)}): prepare the set again") from error
        if len(self.records) != self.about["rows"]:
            raise UserError(
                f"{directory} holds {len(self.records)} rows, {PREPARED} says {self.about['rows']}: prepare it again"
            )

    def __len__(self) -> int:
        return self.about["rows"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self.records[index]
        except Exception as error:  # as above
            raise ValueError(f"unreadable ({first_line(error)})") from error
        return parse_json(record)

    def rows(self) -> Iterator[Row]:
        """Yield every object as a row."""
        for index in range(len(self)):
            try:
                value, wrong = self[index], ""
            except ValueError as error:
                value, wrong = None, str(error)
            yield make_row(f"row {index}", index, value, wrong)


def is_prepared(directory: epath.PathLike) -> bool:
    """Return whether `write_prepared` made it."""
    return (place(directory) / PREPARED).exists()


def write_prepared(directory: epath.PathLike, values: Sequence[dict[str, Any]], **about) -> None:
    """Write objects as an array_record file, one a record, and then what the set is into set.json."""
    writer_of = needed("array_record.python.array_record_module", "array_record", "prepared sets").ArrayRecordWriter
    directory = place(directory)
    with tempfile.TemporaryDirectory() as local:
        made = epath.Path(local) / RECORDS
        writer = writer_of(str(made), "group_size:1")  # a record a group: read one without its neighbours
        for value in values:
            writer.write(json.dumps(value, ensure_ascii=False, default=str).encode())
        writer.close()
        patiently(f"make {directory}", lambda: directory.mkdir(parents=True, exist_ok=True))
        patiently(f"write {directory / RECORDS}", lambda: (directory / RECORDS).write_bytes(made.read_bytes()))
    text = json.dumps({"rows": len(values), **about}, indent=1, ensure_ascii=False) + "\n"
    patiently(f"write {directory / PREPARED}", lambda: (directory / PREPARED).write_text(text))


# ---- the hub, TFDS


def hub_rows(hub: str, *, config: str, split: str, limit: int) -> Iterator[Row]:
    """Yield the rows of a hub data set or a local copy of one; with a `limit`, files are read only as far as needed."""
    datasets = needed("datasets", "datasets", "data sets of the hub")
    split = split or "train"
    try:
        data = datasets.load_dataset(hub, config or None, split=split, streaming=limit > 0)
    except Exception as error:  # datasets, huggingface_hub, requests and httpx each raise their own
        said = first_line(error)
        if isinstance(error, ValueError) and "split" in said.lower():
            raise UserError(f"{hub} has no split {split!r} ({said}): name another as NAME@SPLIT") from error
        raise UserError(
            f"{hub} cannot be read from the hub ({type(error).__name__}: {said}). Where there is no network, or the "
            f"set is gated: fetch it elsewhere (hf download --repo-type dataset {hub} --local-dir DIR), copy it here, "
            "and name its parquet or JSON file, or DIR, in place of the set (HF_HUB_OFFLINE=1: do not try the network)"
        ) from error
    return each_row(data, hub)


def each_row(data: Any, hub: str) -> Iterator[Row]:
    """Yield the rows of a set of the `datasets` library; UserError where one of its files cannot be read."""
    values, index = iter(data), 0
    while True:
        try:
            value = next(values)
        except StopIteration:
            return
        except Exception as error:  # pyarrow's, fsspec's and the decompressors' have no common base
            raise UserError(f"{hub} row {index} cannot be read ({first_line(error)}): fetch the set again") from error
        yield make_row(f"row {index}", index, value)
        index += 1


def tfds_rows(name: str, *, split: str) -> Iterator[Row]:
    """Yield the rows of a TensorFlow data set, read without TensorFlow."""
    tfds = needed("tensorflow_datasets", "tensorflow-datasets importlib_resources", f"{name} through TFDS")
    needed(f"tensorflow_datasets.text.{name}", "tensorflow-datasets", f"{name} through TFDS")  # else it is not found
    try:
        data = tfds.data_source(name, split=split, builder_kwargs={"file_format": "array_record"})  # its own wants TF
    except Exception as error:  # TFDS, its downloads and its file systems have no common base
        raise UserError(
            f"{name} cannot be read through TFDS ({type(error).__name__}: {first_line(error)}). Where there is no "
            f"network: copy a prepared ~/tensorflow_datasets/{name} here, or name a .jsonl or .parquet file instead"
        ) from error
    for index in range(len(data)):
        value = {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in data[index].items()}
        yield make_row(f"row {index}", index, value)
