"""Append-only logs, one JSON object a line, that can be cut back to the byte for an exact resume.

A checkpoint stores the byte size of every log at its moment (`JsonlWriter.commit`). After a kill the logs may hold
more: whole records of lost steps and a torn last line. `truncate_to` cuts exactly that off.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.errors import DataError, RunFolderError, explain
from anabranch.tracking.files import sync_folder, writing


def plain(value: object, where: str = "record") -> Any:
    """The value as plain JSON types: numpy scalars become numbers, numpy arrays and tuples become lists.

    Raises:
        ValueError: a number that is not finite; JSON has none. Names its place in the record.
        TypeError: a type that has no JSON form, or a key that is not text.
    """
    if isinstance(value, str):
        return str(value)  # a StrEnum becomes its text
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, not finite")
        return float(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys are text")
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which has no JSON form")


def encode(record: Mapping[str, object]) -> bytes:
    """One line of UTF-8 with its newline. Raises what `plain` raises."""
    value = plain(record)
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair in somebody's text: only an escape can carry it
        return (json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


class JsonlWriter:
    """Appends records to one file. They are held back until `commit`, which writes them all or none.

    Raises:
        RunFolderError: the file cannot be opened, or ends in a torn line (`truncate_to` or `cut_torn_line` first).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        with writing(path):
            if whole_size(path) != file_size(path):
                raise RunFolderError(
                    explain(str(path), "a torn last line", "a log ends with a newline", "go on with `anabranch resume`")
                )
            self._file = path.open("ab", buffering=0)
            self._size = self._file.tell()
            sync_folder(path.parent)

    def write(self, record: Mapping[str, object]) -> None:
        """Take one record. Raises what `encode` raises; then nothing is taken."""
        self._pending.append(encode(record))

    def commit(self) -> int:
        """Write what was taken, wait until it is on the disk, and return the size of the file in bytes.

        Raises:
            RunFolderError: it could not be written (disk full). The file is cut back to the last commit and what was
                taken stays pending, so that a later commit may succeed.
        """
        data = memoryview(b"".join(self._pending))
        with writing(self.path):
            try:
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
                os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), self._size)
                raise
        self._size += len(data)
        self._pending.clear()
        return self._size

    def close(self) -> None:
        """Commit what is pending and close the file; closing again does nothing. Raises what `commit` raises."""
        if not self._file.closed:
            try:
                self.commit()
            finally:
                self._file.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log. A torn last line (no newline) is left out: its record was never committed.

    Raises:
        DataError: no such file, or a whole line that is not a JSON object (named by its number).
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(explain(str(path), "no such file", "a log is read from it", "check the path")) from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _decode(path, number, line)


def _decode(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(explain(where, f"no JSON ({error})", "a line is one JSON object", "remove the line")) from error
    if not isinstance(record, dict):
        raise DataError(explain(where, record, "a line is one JSON object", "remove the line"))
    return record


def file_size(path: Path) -> int:
    """Bytes of the file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def whole_size(path: Path) -> int:
    """Bytes up to and with the last newline: the size without a torn last line."""
    size = end = file_size(path)
    if not size:
        return 0
    with path.open("rb") as file:
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def check_cut(path: Path, size: int) -> None:
    """Refuse a cut that `truncate_to` could not make exactly.

    Raises:
        RunFolderError: the log is shorter than `size`, or has no line end there: not the log of that checkpoint.
    """
    have = file_size(path)
    if have < size:
        raise RunFolderError(
            explain(str(path), f"{have} bytes", f"the checkpoint was written at {size}", "restore the file")
        )
    if size and not _ends_line(path, size):
        raise RunFolderError(
            explain(str(path), f"no line end at byte {size}", "the checkpoint was written there", "restore the file")
        )


def truncate_to(path: Path, size: int) -> None:
    """Cut a log back to the size that a checkpoint stored; what follows belongs to steps that will be done again.

    Args:
        path: the log; need not exist if size is 0.
        size: bytes, as returned by `JsonlWriter.commit`.

    Raises:
        RunFolderError: see `check_cut`; or the file cannot be written.
    """
    check_cut(path, size)
    if file_size(path) > size:
        with writing(path), path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def cut_torn_line(path: Path) -> int:
    """Cut off a torn last line, keep every whole one. Returns the size that is left, in bytes.

    Raises:
        RunFolderError: the file cannot be written.
    """
    size = whole_size(path)
    truncate_to(path, size)
    return size


def _ends_line(path: Path, size: int) -> bool:
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
