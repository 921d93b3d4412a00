"""What the logs promise: whole lines, all or nothing, and an exact cut."""

import errno
import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import DataError, RunFolderError
from anabranch.records import Reason
from anabranch.tracking.files import writing
from anabranch.tracking.jsonl import (
    JsonlWriter,
    cut_torn_line,
    encode,
    plain,
    read_jsonl,
    truncate_to,
    whole_size,
)


def write(path, *records):
    writer = JsonlWriter(path)
    for record in records:
        writer.write(record)
    size = writer.commit()
    writer.close()
    return size


def test_what_is_committed_is_read_back(tmp_path):
    path = tmp_path / "log.jsonl"
    size = write(path, {"a": 1}, {"b": [1.5, None, True], "c": "ü\nline\u2028"})
    assert list(read_jsonl(path)) == [{"a": 1}, {"b": [1.5, None, True], "c": "ü\nline\u2028"}]
    assert size == path.stat().st_size


def test_nothing_reaches_the_file_before_the_commit(tmp_path):
    path = tmp_path / "log.jsonl"
    writer = JsonlWriter(path)
    writer.write({"a": 1})
    assert path.stat().st_size == 0
    assert writer.commit() == len(b'{"a": 1}\n')
    assert writer.commit() == len(b'{"a": 1}\n')
    writer.close()
    writer.close()


def test_closing_commits_what_is_pending(tmp_path):
    path = tmp_path / "log.jsonl"
    writer = JsonlWriter(path)
    writer.write({"a": 1})
    writer.close()
    assert list(read_jsonl(path)) == [{"a": 1}]


def test_a_second_writer_appends(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"a": 1})
    assert write(path, {"a": 2}) == path.stat().st_size
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]


def test_numpy_values_become_plain_ones():
    record = {
        "f": np.float32(0.5),
        "i": np.int64(7),
        "b": np.bool_(True),
        "x": np.arange(4, dtype=np.int32).reshape(2, 2),
        "t": (1, 2),
        "r": Reason.NO_ANSWER,
    }
    expected = {"f": 0.5, "i": 7, "b": True, "x": [[0, 1], [2, 3]], "t": [1, 2], "r": "no_answer"}
    assert json.loads(encode(record)) == expected
    assert all(type(plain(value)) in (float, int, bool, list, str) for value in record.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, np.nan])])
def test_a_number_that_is_not_finite_is_refused_with_its_place(bad, tmp_path):
    writer = JsonlWriter(tmp_path / "log.jsonl")
    writer.write({"a": 1})
    with pytest.raises(ValueError, match=r"record\.parts\.x.* not finite"):
        writer.write({"parts": {"x": bad}})
    writer.close()
    assert list(read_jsonl(tmp_path / "log.jsonl")) == [{"a": 1}]  # the bad record left nothing behind


@pytest.mark.parametrize(("bad", "says"), [({"a": {1, 2}}, r"record\.a is a set"), ({"a": {1: 2}}, "keys are text")])
def test_what_has_no_json_form_is_refused(bad, says):
    with pytest.raises(TypeError, match=says):
        encode(bad)


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=())))  # lone surrogates too: text is hostile
def test_any_text_survives_on_one_line(text):
    line = encode({"text": text})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {"text": text}


def test_the_reader_leaves_a_torn_last_line_out(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"a": 1}, {"a": 2})
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}][: whole[:size].count(b"\n")]
        assert whole_size(path) == whole[:size].rfind(b"\n") + 1


def test_the_reader_names_the_line_that_is_broken(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: found no JSON"):
        list(read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: found"):
        list(read_jsonl(path))
    with pytest.raises(DataError, match="no such file"):
        list(read_jsonl(tmp_path / "other.jsonl"))


def test_a_cut_at_a_committed_size_gives_exactly_that_file_back(tmp_path):
    path = tmp_path / "log.jsonl"
    size = write(path, {"a": 1}, {"a": 2})
    before = path.read_bytes()
    write(path, {"a": 3})
    with path.open("ab") as file:
        file.write(b'{"a": 4, "torn')  # killed in the middle of a write
    truncate_to(path, size)
    assert path.read_bytes() == before
    truncate_to(path, 0)
    assert path.read_bytes() == b""
    truncate_to(tmp_path / "never_written.jsonl", 0)


def test_a_log_of_another_checkpoint_is_not_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    size = write(path, {"a": 1})
    with pytest.raises(RunFolderError, match=f"found {size} bytes, but the checkpoint was written at {size + 5}"):
        truncate_to(path, size + 5)
    with pytest.raises(RunFolderError, match="no line end at byte 4"):
        truncate_to(path, 4)
    with pytest.raises(RunFolderError, match="found 0 bytes"):
        truncate_to(tmp_path / "gone.jsonl", 7)
    assert path.stat().st_size == size


def test_a_torn_line_is_cut_off_before_anything_is_appended(tmp_path):
    path = tmp_path / "log.jsonl"
    size = write(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2' + b"x" * 200_000)  # longer than one block of the backward search
    with pytest.raises(RunFolderError, match="torn last line"):
        JsonlWriter(path)
    assert cut_torn_line(path) == size
    assert cut_torn_line(path) == size
    write(path, {"a": 3})
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 3}]


@contextmanager
def room_for(num_bytes):
    """The system refuses to let any file grow beyond so many bytes, after writing what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_leaves_the_log_as_it_was_and_a_later_commit_succeeds(tmp_path):
    path = tmp_path / "log.jsonl"
    writer = JsonlWriter(path)
    writer.write({"a": 1})
    size = writer.commit()
    writer.write({"a": 2})
    with room_for(size + 4), pytest.raises(RunFolderError, match=r"log\.jsonl: found File too large"):
        writer.commit()
    assert path.stat().st_size == size
    assert writer.commit() == 2 * size
    writer.close()
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "found No space left on device, but it has to be written\n  fix: free some space"),
        (errno.EACCES, "found Permission denied.*\n  fix: choose a folder that you may write to"),
        (errno.EIO, "found Input/output error.*\n  fix: check the disk"),
    ],
)
def test_a_write_error_names_the_file_and_the_way_out(code, says, tmp_path):
    with pytest.raises(RunFolderError, match=f"log.jsonl: {says}"), writing(tmp_path / "log.jsonl"):
        raise OSError(code, os.strerror(code))


def test_a_log_that_cannot_be_opened_is_a_clear_error(tmp_path):
    path = tmp_path / "log.jsonl"
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"log\.jsonl: found Is a directory"):
        JsonlWriter(path)
