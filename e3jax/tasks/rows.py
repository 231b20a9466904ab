"""Rows of a data set, one by one, from where they lie: a file, a prepared set, the hub, TFDS.

    for row in file_rows("sets/mine.jsonl"):
        print(row.where, row.value)     # "line 1" {"problem": …}

A line that cannot be read comes as a row too, with `problem` saying why, so that whoever reads counts it.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from e3jax.errors import UserError, first_line
from e3jax.storage import is_bucket, patiently, place

SUFFIXES = (".json", ".jsonl", ".parquet")
PREPARED = "set.json"  # what a prepared set says about itself
RECORDS = "problems.array_record"
BATCH = 1024  # rows of a parquet file that are in memory at once


class Row(NamedTuple):
    """One row of a set; `wrong` is why it could not be read, and then there is no value."""

    where: str  # "line 3" of a JSONL file counts from 1, "row 2" of anything else from 0
    index: int  # from 0
    value: dict[str, Any]
    wrong: str = ""


def is_place(name: str) -> bool:
    """Whether a set's name says where it lies (a path) and not which it is (a name or a hub id)."""
    if not name:
        return False
    return is_bucket(name) or name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES) or epath.Path(name).exists()


def place_rows(path: str, *, split: str, limit: int) -> Iterator[Row]:
    """Rows of a file, of a prepared set (rows are Problems without a prompt), or of a local copy of a hub's set."""
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
        return (Row(f"row {i}", i, value) for i, value in enumerate(PreparedSet(there)))
    return file_rows(there)


# ---- files


def file_rows(path: epath.PathLike) -> Iterator[Row]:
    """Rows of a .json (a list of objects), .jsonl or .parquet file, local or in a bucket; UserError for another."""
    path = place(path)
    readers = {".json": json_rows, ".jsonl": jsonl_rows, ".parquet": parquet_rows}
    if path.suffix not in readers:
        raise UserError(f"{path} is neither of {', '.join(SUFFIXES)}: rename or convert it")
    return readers[path.suffix](path)


def jsonl_rows(path: epath.Path) -> Iterator[Row]:
    """An object a line; blank lines are no rows."""
    index = 0
    for number, line in enumerate(read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value, wrong = json.loads(line.decode("utf-8")), ""
        except UnicodeDecodeError as error:
            value, wrong = {}, f"not UTF-8 ({error.reason} at byte {error.start})"
        except ValueError as error:
            value, wrong = {}, f"not JSON ({error})"
        if not wrong and not isinstance(value, dict):
            value, wrong = {}, "not an object"
        yield Row(f"line {number}", index, value, wrong)
        index += 1


def json_rows(path: epath.Path) -> Iterator[Row]:
    """A list of objects."""
    try:
        values = json.loads(read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): convert it") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); with an object a line it must be named .jsonl") from error
    if not isinstance(values, list):
        raise UserError(f"{path} holds a {type(values).__name__}: a list of objects is needed")
    for index, value in enumerate(values):
        wrong = "" if isinstance(value, dict) else "not an object"
        yield Row(f"row {index}", index, {} if wrong else value, wrong)


def parquet_rows(path: epath.Path) -> Iterator[Row]:
    """Rows of a parquet file, a batch in memory at a time."""
    parquet = needed("pyarrow.parquet", "pyarrow", "parquet files")
    with patiently(f"read {path}", lambda: path.open("rb")) as file:
        try:
            table = parquet.ParquetFile(file)
        except Exception as error:  # pyarrow's own have no common base below ValueError and OSError
            raise UserError(f"{path} is no parquet file ({first_line(error)}): convert it, or rename it") from error
        index = 0
        for batch in table.iter_batches(batch_size=BATCH):
            for i in range(batch.num_rows):
                try:
                    value, wrong = batch.slice(i, 1).to_pylist()[0], ""
                except UnicodeDecodeError as error:
                    value, wrong = {}, f"not UTF-8 ({error.reason})"
                yield Row(f"row {index}", index, value, wrong)
                index += 1


def read(path: epath.Path) -> bytes:
    """All of a file."""
    return patiently(f"read {path}", path.read_bytes)


def needed(module: str, package: str, what: str) -> Any:
    """A library that only some data needs; UserError when it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} need {package} ({error}): pip install {package}, or 'e3jax[data]'") from error


# ---- prepared sets: array_record, read at random


class PreparedSet(Sequence):
    """Objects of a prepared set by number, each read when it is asked for; a bucket's file is fetched once, whole.

    (array_record itself reads local files only.)
    """

    def __init__(self, directory: epath.PathLike):
        source = needed("array_record.python.array_record_data_source", "array_record", "prepared sets")
        directory = place(directory)
        self.about = json.loads(read(directory / PREPARED))
        records = directory / RECORDS
        if is_bucket(str(directory)):
            self.fetched = tempfile.TemporaryDirectory(prefix="e3jax-set-")
            local = epath.Path(self.fetched.name) / RECORDS
            local.write_bytes(read(records))
            records = local
        self.records = source.ArrayRecordDataSource(str(records))
        if len(self.records) != self.about["rows"]:
            raise UserError(
                f"{directory} holds {len(self.records)} rows, {PREPARED} says {self.about['rows']}: prepare it again"
            )

    def __len__(self) -> int:
        return self.about["rows"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return json.loads(self.records[index])


def is_prepared(directory: epath.PathLike) -> bool:
    """Whether `write_prepared` made it."""
    return (place(directory) / PREPARED).exists()


def write_prepared(directory: epath.PathLike, values: Sequence[dict[str, Any]], **about) -> None:
    """Objects as an array_record file with one of them a record, and what the set is in set.json, written last."""
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
    """Rows of a hub data set, or of a local copy of one; with a `limit` its files are read only so far as needed."""
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
    return (Row(f"row {index}", index, value) for index, value in enumerate(data))


def tfds_rows(name: str, *, split: str) -> Iterator[Row]:
    """Rows of a TensorFlow data set, read without TensorFlow."""
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
        yield Row(f"row {index}", index, value)
