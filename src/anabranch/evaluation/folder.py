"""The folder of an evaluation: what was asked, every judged answer, the result. Killed at any instant, it goes on.

evaluation.json   the settings that decide the answers, the model's fingerprint, what it ran on
answers.jsonl     one record an answer, written and flushed to disk batch by batch
result.json       the numbers, once all answers are there
lock              held by the process that writes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

import torch
from transformers import PreTrainedModel

from anabranch.errors import RunFolderError, explain
from anabranch.records import Problem, Rollout, Verdict
from anabranch.tracking.environment import describe_environment
from anabranch.tracking.files import write_atomic, writing
from anabranch.tracking.jsonl import JsonlWriter, cut_torn_line, encode, read_jsonl, truncate_to
from anabranch.tracking.lock import FolderLock

NAMED_CHANGES = 4
"""How many settings a refusal names."""


class AnswerRecord(TypedDict):
    """One line of `answers.jsonl`."""

    key: str
    """The problem's identity."""
    sample: int
    """Which answer to the problem."""
    question: str
    gold: str
    text: str
    """The model's answer, as it came: hostile input for whoever shows it."""
    verdict: str
    """Reason code."""
    value: float
    detail: str
    extracted: str | None
    tokens: int
    stop: str


def answer_record(problem: Problem, rollout: Rollout, verdict: Verdict) -> AnswerRecord:
    """Gather the record of one answer."""
    return AnswerRecord(
        key=problem.key,
        sample=rollout.sample,
        question=problem.question,
        gold=problem.answer,
        text=rollout.text if rollout.transcript is None else rollout.transcript,
        verdict=verdict.reason.value,
        value=verdict.value,
        detail=verdict.detail,
        extracted=verdict.extracted,
        tokens=rollout.num_answer_tokens,
        stop=rollout.stop.value,
    )


def digest(texts: Sequence[str]) -> str:
    """16 hex digits that stand for a list of texts."""
    return hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=8).hexdigest()


def weights_digest(model: PreTrainedModel) -> str:
    """16 hex digits that stand for the weights as they compute: names, types, shapes and every bit."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.named_parameters()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


class EvaluationFolder:
    """An evaluation that this process writes to. A context manager.

    Raises:
        RunFolderError: another process is at it, the folder holds other files, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header_file, self.answers_file, self._result_file = (
            path / name for name in ("evaluation.json", "answers.jsonl", "result.json")
        )
        _refuse_other_files(path, self._header_file)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(path / "lock")
        self._header: dict[str, Any] | None = _read(self._header_file)
        self._writer: JsonlWriter | None = None

    @property
    def compute(self) -> dict[str, Any] | None:
        """Device, dtype and threads of the answers that are here already; None if nothing is here."""
        return None if self._header is None else dict(self._header["compute"])

    def begin(self, settings: Mapping[str, Any], compute: Mapping[str, Any], model: str) -> None:
        """Note what is evaluated, or make sure that it is what was begun here.

        Args:
            settings: everything that decides the answers, plain JSON types; compared with what is here.
            compute: where and how they are computed; written down only.
            model: the model's name; written down only.

        Raises:
            RunFolderError: the folder holds an evaluation with other settings.
        """
        if self._header is None:
            environment = describe_environment()
            header = {
                "settings": dict(settings),
                "compute": dict(compute),
                "model": model,
                "environment": environment,
            }
            write_atomic(self._header_file, json.dumps(header, indent=1) + "\n")
            self._header = header
        else:
            self._compare(json.loads(json.dumps(settings)), model)

    def _compare(self, settings: Mapping[str, Any], model: str) -> None:
        assert self._header is not None
        there = {**self._header["settings"]}
        if there == settings:
            return
        names = [name for name in dict.fromkeys([*there, *settings]) if there.get(name) != settings.get(name)]
        changes = [
            f"the weights of {self._header['model']} there, of {model} here"
            if name == "weights"
            else f"{name} {there.get(name)} there, {settings.get(name)} here"
            for name in names[:NAMED_CHANGES]
        ]
        more = f"; and {len(names) - NAMED_CHANGES} more" if len(names) > NAMED_CHANGES else ""
        raise RunFolderError(
            explain(
                str(self.path),
                f"another evaluation ({'; '.join(changes)}{more})",
                "a folder holds one evaluation",
                f"--out {_free(self.path)}, or remove the folder",
            )
        )

    def finished(self, expected: Sequence[Sequence[tuple[str, int]]]) -> list[AnswerRecord]:
        """The answers of all whole batches that are here; what follows them is cut off. Opens the log for `append`.

        Args:
            expected: (key, sample) of every answer, batch by batch.

        Raises:
            RunFolderError: the answers here are others than those expected.
        """
        cut_torn_line(self.answers_file)
        found: list[Any] = list(read_jsonl(self.answers_file)) if self.answers_file.exists() else []
        kept = 0
        for batch in expected:
            part = found[kept : kept + len(batch)]
            if [(record["key"], record["sample"]) for record in part] != list(batch[: len(part)]):
                raise RunFolderError(
                    explain(
                        str(self.answers_file),
                        "answers to other problems",
                        "the file holds the answers of this evaluation",
                        f"--out {_free(self.path)}",
                    )
                )
            if len(part) < len(batch):
                break
            kept += len(batch)
        truncate_to(self.answers_file, sum(len(encode(record)) for record in found[:kept]))
        self._writer = JsonlWriter(self.answers_file)
        return found[:kept]

    def append(self, records: Sequence[AnswerRecord]) -> None:
        """Put the answers of a batch safely on disk.

        Raises:
            RunFolderError: it could not be written (disk full); nothing of the batch is there then.
        """
        assert self._writer is not None
        for record in records:
            self._writer.write(record)
        self._writer.commit()

    @property
    def result(self) -> dict[str, Any] | None:
        """What `write_result` wrote before, if anything."""
        return _read(self._result_file)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the numbers."""
        write_atomic(self._result_file, json.dumps(result, indent=1, allow_nan=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._lock.release()


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _free(path: Path) -> Path:
    return next(other for n in count(2) if not (other := path.with_name(f"{path.name}-{n}")).exists())


def _refuse_other_files(path: Path, header: Path) -> None:
    """A folder with foreign files is left alone."""
    if header.exists() or not path.is_dir():
        return
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in ("lock", f"{header.name}.part"))
    if others:
        found = f"other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''})"
        fix = f"--out {_free(path)}"
        raise RunFolderError(explain(str(path), found, "an evaluation needs a new or empty folder", fix))
