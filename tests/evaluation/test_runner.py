"""What an evaluation promises whatever happens to its process: the same answers, the same numbers, nothing mixed up."""

import json
import random

import pytest
import torch

from anabranch.engines.episodes import Answerer
from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import RunFolderError
from anabranch.evaluation import held_out
from anabranch.evaluation.folder import EvaluationFolder, weights_digest
from anabranch.evaluation.held_out import batches
from anabranch.evaluation.report import accuracy_table, numbers, remarks, sizes, verdict_table
from anabranch.evaluation.runner import answer_all
from anabranch.modeling.attention import NAME
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.recipe.tree import Answer, Prompt, Recipe, RolloutSettings
from anabranch.records import Problem
from anabranch.tasks.base import problem_key
from anabranch.tasks.equality import MathChecker
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import PlainDisplay

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 3
PROBLEMS = tuple(
    Problem(problem_key(question, answer), question, answer, "sums")
    for question, answer in (("1+1=", "2"), ("1+2=", "3"), ("2+2=", "4"), ("2+3=", "5"), ("0+0=", "0"))
)
COMPUTE = {"device": "cpu", "dtype": "float32", "threads": 1}


class Silent(PlainDisplay):
    def __init__(self):
        self.lines = []
        super().__init__(self)

    def write(self, text):
        self.lines.append(text)

    def flush(self):
        pass


class Interrupted(TorchEngine):
    """Stops as Ctrl-C does, after so many answers."""

    answers_left = 0

    def open(self, **options):
        stream = super().open(**options)
        advance = stream.advance

        def some():
            found = advance()
            self.answers_left -= len(found)
            if self.answers_left < 0:
                raise KeyboardInterrupt
            return found

        stream.advance = some
        return stream


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Batches of 2 problems: 6 answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "ANSWERS_A_BATCH", 2 * SAMPLES)
        yield


@pytest.fixture(scope="module")
def judge():
    with Judge(MathChecker(("last_number",))) as judge:
        yield judge


@pytest.fixture(scope="module")
def world():
    tokenizer = character_tokenizer("0123456789+-=")
    model = tiny_llama(vocab_size=len(tokenizer), hidden=16)
    model.set_attn_implementation(NAME)
    recipe = Recipe(
        name="tiny",
        prompt=Prompt(instruction=""),
        answer=Answer(extract=("last_number",)),
        rollout=RolloutSettings(max_new_tokens=6),
    )
    return model, tokenizer, Asker(recipe, tokenizer, model)


def answered(world, judge, path, *, engine=None, settings=None, display=None):
    model, tokenizer, asker = world
    with EvaluationFolder(path) as folder:
        folder.begin(settings or {"samples": SAMPLES}, COMPUTE, "tiny")
        return answer_all(
            folder,
            asker,
            Answerer(engine or TorchEngine(model, tokenizer, max_rows=3), tokenizer),
            judge,
            PROBLEMS,
            samples=SAMPLES,
            display=display or Silent(),
        )


@pytest.fixture(scope="module")
def whole(world, judge, tmp_path_factory):
    """An evaluation that nobody disturbed: its records and the bytes of its log."""
    path = tmp_path_factory.mktemp("whole") / "eval"
    return answered(world, judge, path).records, (path / "answers.jsonl").read_bytes()


def test_every_answer_is_recorded_once_in_the_order_of_problems_and_samples(whole):
    records, written = whole
    assert [(r["key"], r["sample"]) for r in records] == [(p.key, s) for p in PROBLEMS for s in range(SAMPLES)]
    assert [json.loads(line) for line in written.splitlines()] == records
    assert {r["verdict"] for r in records} & {"wrong", "correct"}
    assert len({r["text"] for r in records}) > len(records) // 2  # samples differ


def test_an_evaluation_killed_at_any_byte_ends_with_the_same_bytes(world, judge, whole, tmp_path):
    records, written = whole
    answered(world, judge, tmp_path)
    line_ends = [index + 1 for index, byte in enumerate(written) if byte == ord("\n")]
    for size in [0, 1, line_ends[0], line_ends[5] - 1, line_ends[5], *random.Random(0).sample(range(len(written)), 5)]:
        (tmp_path / "answers.jsonl").write_bytes(written[:size])
        assert answered(world, judge, tmp_path).records == records
        assert (tmp_path / "answers.jsonl").read_bytes() == written


def test_an_interrupted_evaluation_keeps_whole_batches_and_goes_on(world, judge, whole, tmp_path):
    records, written = whole
    engine = Interrupted(*world[:2], max_rows=3)
    engine.answers_left = 8  # the first batch has 6
    with pytest.raises(KeyboardInterrupt):
        answered(world, judge, tmp_path / "eval", engine=engine)
    kept = (tmp_path / "eval" / "answers.jsonl").read_bytes()
    assert written.startswith(kept) and kept.count(b"\n") == 6
    display = Silent()
    assert answered(world, judge, tmp_path / "eval", display=display).records == records
    assert "6 of 15 answers are here already" in "".join(display.lines)
    assert "evaluation: 3 batches" in "".join(display.lines)


def test_a_finished_evaluation_answers_nothing_again(world, judge, whole, tmp_path):
    answered(world, judge, tmp_path)
    engine = Interrupted(*world[:2], max_rows=3)  # would stop at the first answer
    again = answered(world, judge, tmp_path, engine=engine)
    assert again.records == whole[0] and again.per_second is None


def test_other_settings_in_the_same_folder_are_refused_by_name(world, judge, tmp_path):
    answered(world, judge, tmp_path / "eval")
    before = (tmp_path / "eval" / "answers.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"samples 3 there, 4 here.*\n  fix: --out .*eval-2"):
        answered(world, judge, tmp_path / "eval", settings={"samples": 4})
    with pytest.raises(RunFolderError, match="the weights of tiny there, of tiny here"):
        answered(world, judge, tmp_path / "eval", settings={"samples": 3, "weights": "other"})
    assert (tmp_path / "eval" / "answers.jsonl").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.txt"):
        EvaluationFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_write_to_one_evaluation(tmp_path):
    with EvaluationFolder(tmp_path), pytest.raises(RunFolderError, match="in use by process"):
        EvaluationFolder(tmp_path)


def test_answers_to_other_problems_are_not_taken_over(world, judge, tmp_path):
    answered(world, judge, tmp_path)
    log = tmp_path / "answers.jsonl"
    log.write_text(log.read_text().replace(PROBLEMS[1].key, "0" * 16))
    with pytest.raises(RunFolderError, match="answers to other problems"):
        answered(world, judge, tmp_path)


def test_the_fingerprint_of_weights_changes_with_one_bit():
    first, second = tiny_llama(seed=1), tiny_llama(seed=1)
    assert weights_digest(first) == weights_digest(second)
    with torch.no_grad():
        second.model.norm.weight[3] = torch.nextafter(second.model.norm.weight[3], torch.tensor(9.0))
    assert weights_digest(first) != weights_digest(second)


def test_batches_hold_whole_problems():
    assert [len(part) for part in batches(PROBLEMS, SAMPLES)] == [2, 2, 1]
    assert [len(part) for part in batches(PROBLEMS, 100)] == [1] * 5  # more samples than answers a batch


# ------------------------------------------------------------------------------------------------------------ report


def record(key, sample, value, extracted, *, verdict=None, tokens=10, stop="eos"):
    verdict = verdict or ("correct" if value == 1 else "wrong")
    return {
        "key": key,
        "sample": sample,
        "question": "",
        "gold": "",
        "text": "",
        "verdict": verdict,
        "value": value,
        "detail": "",
        "extracted": extracted,
        "tokens": tokens,
        "stop": stop,
    }


TWO_PROBLEMS = [
    record("a", 0, 1.0, "7"),
    record("a", 1, 1.0, "7"),
    record("a", 2, 0.0, "8"),
    record("a", 3, 0.0, None, verdict="no_answer", tokens=64, stop="length"),
    record("b", 0, 0.0, "1"),
    record("b", 1, 0.0, "2"),
    record("b", 2, 0.0, "3"),
    record("b", 3, 1.0, "4"),
]


def test_numbers_of_two_problems_by_hand():
    result = numbers(TWO_PROBLEMS, 4)
    values = {name: ends["value"] for name, ends in result["estimates"].items()}
    assert list(values) == ["mean@4", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert values["mean@4"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert values["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2)  # pairs with a right one: 6 - C(2,2), 6 - C(3,2)
    assert values["pass@4"] == 1.0
    assert values["maj@4"] == pytest.approx((1 + 1 / 4) / 2)  # a: 7 has two votes; b: four tie, one is right
    assert result["verdicts"] == {"correct": 3, "wrong": 4, "no_answer": 1}
    assert result["answer_length_mean"] == pytest.approx((7 * 10 + 64) / 8)
    assert result["truncated"] == 1 / 8
    assert result["per_problem"] == {"a": 0.5, "b": 0.25}


def test_sizes_are_powers_of_two_and_the_number_of_samples():
    assert [sizes(k) for k in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_one_sample_has_no_majority():
    assert list(numbers([record("a", 0, 1.0, "7")], 1)["estimates"]) == ["mean@1", "pass@1"]


def test_a_partly_right_answer_counts_for_the_mean_and_not_for_pass():
    values = numbers([record("a", 0, 0.5, "7", verdict="partial")], 1)["estimates"]
    assert values["mean@1"]["value"] == 0.5 and values["pass@1"]["value"] == 0.0


def test_tables_show_percentages_and_the_most_frequent_verdict_first():
    result = numbers(TWO_PROBLEMS, 4)
    lines = accuracy_table(result, "sums").plain().splitlines()
    assert lines[0] == "sums" and lines[1].endswith("95 % interval over problems")
    assert lines[3].split() == ["mean@4", "37.5", "25.0", "to", "50.0"]
    assert [row[0] for row in verdict_table(result).rows] == ["wrong", "correct", "no answer"]
    assert verdict_table(result).rows[0] == ("wrong", "4", "50.0")


def test_remarks_warn_of_what_spoils_a_number():
    result = numbers(TWO_PROBLEMS, 4)
    result |= {"gold_refused": ["b"], "answers_per_second": 2.0}
    result["overlap"] = {
        "training_problems": 9,
        "same": ["a"],
        "near": [{"key": "b", "training_key": "x", "share": 0.9}],
    }
    text = "\n".join(remarks(result, 64, ("boxed",)))
    assert "answers have 16.8 tokens on average, 12.5% were cut at 64; 2.00 answers/s" in text  # 134 / 8 = 16.75
    assert "rollout.max_new_tokens=128" in text
    assert "of several with the most votes each wins equally often" in text
    assert "1 of 2 problems cannot be solved, their own gold answers are not accepted: b" in text
    assert "WARNING: 1 problems are among the 9 training problems: a" in text
    assert (
        "WARNING: 1 problems share most of their 8-word phrases with one of the 9 training problems: b (90% of x)"
        in text
    )


def test_remarks_stay_short_where_all_is_well():
    result = numbers([*TWO_PROBLEMS[:1], record("b", 0, 0.0, "3")], 1)
    result |= {"gold_refused": [], "answers_per_second": None, "overlap": None}
    assert remarks(result, 64, ("boxed",)) == ["answers have 10.0 tokens on average, 0.0% were cut at 64"]
