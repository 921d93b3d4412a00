"""Problems from files: what is read, and what every mistake in a file says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.errors import DataError
from anabranch.recipe.tree import Answer, HubDataset, JsonLines
from anabranch.tasks import hub
from anabranch.tasks.base import open_task, self_check
from anabranch.tasks.equality import MathChecker
from anabranch.tasks.files import to_problems
from anabranch.tasks.judge import Judge

CHECKER = MathChecker(Answer().extract)
DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data files are not here")


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def opened(path, **columns):
    return open_task(JsonLines(path=str(path), **columns), Answer())


def test_rows_become_problems_each_once(tmp_path):
    path = write(
        tmp_path / "sums.jsonl",
        {"question": "1 + 1 =", "answer": "2", "level": 3},
        "",
        {"question": "2 + 2 =", "answer": 4},
        {"question": "1 + 1 =", "answer": "2"},
    )
    task = opened(path)
    assert [(p.question, p.answer, p.source, p.level) for p in task.problems] == [
        ("1 + 1 =", "2", "sums", "3"),
        ("2 + 2 =", "4", "sums", None),
    ]


def test_columns_mark_and_limit_are_honoured(tmp_path):
    rows = [{"q": f"{n}?", "a": f"so #### no\n#### {n}"} for n in range(5)]
    task = opened(write(tmp_path / "x.jsonl", *rows), question="q", answer="a", answer_after="####", limit=3)
    assert [problem.answer for problem in task.problems] == ["0", "1", "2"]


GOOD = {"question": "1 + 1 =", "answer": "2"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', r"x\.jsonl:2: found .*this is not JSON"),
        ("[" * 100_000, r"x\.jsonl:2: .*this is not JSON"),
        ("[1, 2]", r"x\.jsonl:2: found a JSON list"),
        ({"question": "q"}, r"x\.jsonl:2: found columns 'question', but column 'answer' is needed"),
        ({"question": 3, "answer": "2"}, r"x\.jsonl:2: found question = 3, but text is needed"),
        ({"question": "q", "answer": None}, r"x\.jsonl:2: found answer = None"),
        ({"question": "q", "answer": True}, r"x\.jsonl:2: found answer = True"),
        ({"question": " ", "answer": "2"}, r"x\.jsonl:2: found an empty 'question'"),
        ({"question": "q", "answer": ""}, r"x\.jsonl:2: found an empty 'answer'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path / "x.jsonl", GOOD, line))


def test_a_missing_mark_is_named_by_line(tmp_path):
    with pytest.raises(DataError, match=r"x\.jsonl:1: found answer '2', but text after the mark '####'"):
        opened(write(tmp_path / "x.jsonl", GOOD), answer_after="####")


def test_missing_empty_and_binary_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=": found No such file or directory, but a readable"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=": found Is a directory, but a readable"):
        opened(tmp_path)
    with pytest.raises(DataError, match="found no problem"):
        opened(write(tmp_path / "empty.jsonl", "", " "))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        opened(binary)


def test_a_file_has_no_held_out_problems_of_its_own(tmp_path):
    with pytest.raises(DataError, match=r"evaluation\.data=\{kind: jsonl"):
        opened(write(tmp_path / "x.jsonl", GOOD)).held_out(1, seed=0)


def test_a_missing_datasets_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what an import of a missing module meets
    with pytest.raises(DataError, match=r"pip install 'anabranch\[datasets\]'"):
        open_task(HubDataset(id="openai/gsm8k"), Answer())


def test_rows_of_a_hub_data_set_are_named_by_number():
    data = HubDataset(id="some/set", answer_after="####", limit=2)
    rows = [{"question": "q", "answer": "a #### 1"}, {"question": "q", "answer": "none"}, {"bad": 1}]
    assert len(list(hub.numbered(rows, "some/set:train", 2))) == 2
    with pytest.raises(DataError, match=r"some/set:train row 1: found answer 'none'"):
        to_problems(hub.numbered(rows, "some/set:train", data.limit), data, data.id)


@pytest.fixture(scope="module")
def judge():
    with Judge(CHECKER) as judge:
        yield judge


@needs_data
@pytest.mark.parametrize(("name", "count"), [("eval/minerva", 272), ("eval/math500", 500), ("eval/svamp_test", 1000)])
def test_real_files_open_and_a_sample_checks_itself(judge, name, count):
    task = opened(DATA / f"{name}.jsonl")
    assert 0.97 * count <= len(task.problems) <= count
    assert task.problems[0].source == Path(name).name
    assert task.checker == CHECKER
    self_check(task, judge, count=12)  # at even distances, so always the same


def test_importing_tasks_is_light():
    code = (
        "import sys, anabranch.tasks.base, anabranch.tasks.files, anabranch.tasks.hub, anabranch.tasks.judge,"
        "anabranch.tasks.reasoning_gym, anabranch.tasks.worked, anabranch.tasks.prompts, anabranch.rewards.overlong,"
        "anabranch.sampling.uniform\n"
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'reasoning_gym', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
