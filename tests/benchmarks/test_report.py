"""RESULTS.md says what the files of results say, and nothing else."""

import json

import pytest

from benchmarks.duel import ROOT, summary
from benchmarks.goals import Goal, Unit
from benchmarks.markdown import command, table
from benchmarks.report import SECTIONS, outcome_table, outcomes, read_notes, read_results, without_places, written
from benchmarks.step import MODEL

MACHINE = {
    "cpu": "A Processor",
    "flags": ["amx_bf16"],
    "cores": 2,
    "cores_of_machine": 4,
    "memory_gb": 16.1,
    "system": "Linux-6",
    "load_average": [0.25, 0.5, 0.75],
}


def played(rate, peak, **more):
    """A round of 64 units of work."""
    memory = {"peak_mb": peak, "pss_mb": peak}
    return {
        "work": 64,
        "seconds": 64 / rate,
        "rate": rate,
        "memory": memory,
        "other_cores": 0.0,
        "prompts": "x",
        **more,
    }


def side(rounds, settings, env=None):
    ready = {"seconds": 3.0, "python": "3.11.7", "versions": {"torch": "2.13.0"}, "memory": {"peak_mb": 50}}
    return {
        "command": [".venv/bin/python"],
        "settings": settings,
        "env": env or {},
        "ready": ready,
        "warmups": [],
        "rounds": rounds,
    }


def duel_file(ours, theirs, peer="trl", args=None, unit="samples", search=()):
    """What `duel` writes when the sides have played these rounds."""
    return {
        "name": "step",
        "command": [str(ROOT / "benchmarks" / "step.py"), "--tune", "--trl", '{"dtype": "float32"}'],
        "started": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "machine": MACHINE,
        "busy_cores_before": 0.01,
        "args": {"prompts": 8, "answers": 8, "tokens": 64} if args is None else args,
        "unit": unit,
        "goal": 5.0,
        "search": list(search),
        "sides": {"anabranch": side(ours, {"model": MODEL}), peer: side(theirs, {"dtype": "float32"}, {"A": "1"})},
        "summary": summary([ours, theirs]),
    }


def spread_of(*values):
    low, middle, high = sorted(values)
    return {"median": middle, "q1": low, "q3": high, "min": low, "max": high, "runs": 3}


def bench_file(name, summary, runs=3, **parts):
    return {
        "bench": name,
        "complete": True,
        "settings": {
            "model": MODEL,
            "prompts": 8,
            "answers": 8,
            "tokens": 64,
            "prompt_tokens": 80,
            "plain_answers": 28,
            "breadth": {"wide": 512, "narrow": 16, "prompt_tokens": 220, "tokens": [64, 16]},
        },
        "machine": {
            "started": "2026-01-02T03:04:05+00:00",
            "python": "3.11.7",
            "platform": "Linux-6",
            "packages": {"torch": "2.13.0", "gguf": None},
            "cpu": "A Processor",
            "cores": 2,
            "cpu_flags": ["amx_bf16"],
            "git_commit": "0123456789abcdef",
            "command": [".venv/bin/anabranch", "bench", name],
            "load_average": [0.25, 0.5, 0.75],
            "variables": {},
            "dtype": "bfloat16",
            "threads": 2,
        },
        "summary": summary,
        **parts,
        "runs": [{}] * runs,
    }


def growth(factor, time, memory):
    sizes = {"prompts": 8, "answers": 8 * factor, "factor": factor}
    spreads = {"seconds": spread_of(9.5, 10.5, 11.5), "memory_peak_mb": spread_of(800, 810, 820)}
    return {**sizes, **spreads, "time_against_linear": time, "memory_against_base": memory}


def wider(kind, tokens):
    speeds = {"wide": spread_of(9, 10, 11), "narrow": spread_of(4, 4.5, 5), "ratio": spread_of(1.9, 2.25, 2.5)}
    return {"kind": kind, "tokens": tokens, **speeds, "computed_ratio": 1.21}


def by_what(results, word):
    """The only outcome whose description has the word."""
    (found,) = [outcome for outcome in outcomes(results) if word in outcome.what]
    return found


def first(results):
    return outcomes(results)[0]


# ------------------------------------------------------------------------------------------------------- verdicts


def test_the_measured_ratio_is_the_median_of_the_rounds_ratios_with_their_extremes():
    # ratios 10/2, 12/2, 14/2 = 5, 6, 7
    found = first({"step": duel_file([played(r, 100) for r in (10, 12, 14)], [played(2, 400)] * 3)})
    assert (found.goal, found.measured, found.verdict) == (">= 5x", "6x (5 to 7)", "reached")


def test_a_goal_that_is_missed_says_by_how_much_of_it():
    # 8/2 = 4 of 5: 1 is missing, a fifth
    found = first({"step": duel_file([played(8, 100)], [played(2, 400)])})
    assert found.verdict == "**not reached**: 1x short of it (20%)"


@pytest.mark.parametrize(
    ("bound", "unit", "at_least", "value", "verdict"),
    [
        (5.0, Unit.TIMES, True, 5.0, "reached"),
        (8.0, Unit.SECONDS, False, 8.0, "reached"),
        (8.0, Unit.SECONDS, False, 10.0, "**not reached**: 2 s over it (25%)"),
        (0.7, Unit.SHARE, True, 0.65, "**not reached**: 5.0 points short of it"),
        (0.1, Unit.MORE, False, -0.3, "reached"),
        (0.1, Unit.MORE, False, 0.125, "**not reached**: 2.5 points over it"),
    ],
)
def test_the_verdict_on_every_kind_of_goal(bound, unit, at_least, value, verdict):
    assert Goal("", bound, unit, at_least).verdict(value) == verdict


def test_a_step_of_another_size_gets_no_verdict():
    found = first({"step": duel_file([played(50, 1)], [played(2, 2)], args={"prompts": 8, "answers": 2, "tokens": 4})})
    assert found.verdict == "no verdict: answers is 2 and not 8, tokens is 4 and not 64"


def test_memory_compares_the_largest_peaks_of_counted_steps():
    # 300 / 400
    report = duel_file([played(10, 200), played(10, 300)], [played(2, 400), played(2, 390)])
    memory = by_what({"step": report}, "peak memory of that step")
    assert (memory.measured, memory.verdict) == ("0.75x", "**not reached**: 0.25x over it (50%)")


def test_start_up_is_judged_by_seconds_and_not_by_the_ratio():
    starts = [played(1, 10, seconds=s, until_end=s, program_peak_mb=900, line="5 bfloat16") for s in (6, 7, 9)]
    report = duel_file(starts, starts, "transformers", args={}, unit="starts")
    report["sides"]["anabranch"]["settings"] = {"command": ["python", MODEL, "17"]}
    found = by_what({"startup": report}, "start-up")
    assert (found.measured, found.verdict) == ("7 s (6 to 9)", "reached")
    assert f"command=python {MODEL}`" in written({"startup": report}, {})  # the token ids are left out


def test_products_breadth_and_growth_come_from_the_bench_files():
    train = bench_file("train", {"ours/products_share": spread_of(0.6, 0.65, 0.8)})
    rows = {"answers": [growth(2, -0.05, 0.02), growth(4, 0.12, 0.04)], "prompts": [growth(2, 0.0, 0.3)]}
    results = {"train": train, "scale": bench_file("scale", {}, growth=rows, breadth=[wider("generate", 64)])}
    products = by_what(results, "matrix products")
    assert (products.measured, products.verdict) == ("65.0 % (60.0 to 80.0)", "**not reached**: 5.0 points short of it")
    breadth = by_what(results, "of generation, answers of 64 tokens")
    assert (breadth.measured, breadth.verdict) == ("2.25x (1.9 to 2.5), tokens computed 1.21x", "reached")
    assert by_what(results, "of the whole step").verdict == "not measured"
    slower = by_what(results, "linear, answers doubled")
    assert (slower.measured, slower.verdict) == (
        "+12.0 % at x 4, the worst of 2",
        "**not reached**: 2.0 points over it",
    )
    assert by_what(results, "memory of a step, answers doubled").verdict == "reached"
    assert by_what(results, "memory of a step, prompts doubled").verdict == "**not reached**: 20.0 points over it"
    assert by_what(results, "samples doubled").verdict == "not measured"


def test_waiting_is_judged_by_the_ratio_of_each_round_at_a_quarter_of_slow_calls():
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value - 1, "max": value + 1, "runs": 3}

    ratios = {"measured at 0.25": 4.4, "drawn at 0.25": 4.5, "measured at 0": 1.2, "drawn at 0": 1.3}
    summary = {f"ratio/{name} slow": spread(value) for name, value in ratios.items()}
    settings = {"batch": 24, "in flight": 48, "group": 8, "slow shares": [0.25, 0.0]}
    report = {**bench_file("waiting", {}), "summary": summary, "settings": settings}
    found = by_what({"waiting": report}, "answers that come first")
    assert found.verdict == "reached"
    assert found.measured == "4.4 (3.4 to 5.4), without computing 4.5x; without slow calls 1.2x"
    other = {**report, "settings": {**settings, "batch": 12}}
    assert by_what({"waiting": other}, "answers that come first").verdict == "no verdict: batch is 12 and not 24"


def test_breadth_on_short_prompts_gets_no_verdict():
    report = bench_file("scale", {}, breadth=[wider("step", 64)])
    report["settings"]["breadth"]["prompt_tokens"] = 80
    assert by_what({"scale": report}, "of the whole step").verdict == "no verdict: prompts have 80 tokens, not 200"


def test_breadth_has_a_row_for_every_length_of_the_answers():
    parts = {f"breadth/step/16/{side}/seconds": spread_of(1, 2, 3) for side in ("wide", "narrow")}
    text = written({"scale": bench_file("scale", parts, breadth=[wider("step", 64), wider("step", 16)])}, {})
    for tokens in (64, 16):
        assert f"| the whole step | {tokens} | 10 (9 to 11) | 4.5 (4 to 5) | 2.25 (1.9 to 2.5) | 1.21x |" in text
        assert f"of the whole step, answers of {tokens} tokens" in text
    assert "In parts, the whole step, answers of 16 tokens:" in text
    assert "answers of 64 tokens:" not in text  # nothing but the ratio is known of it


# ------------------------------------------------------------------------------------------------------- the report


def test_without_any_file_every_goal_is_not_measured_and_every_file_is_named():
    text = written({}, {})
    assert {(outcome.measured, outcome.verdict) for outcome in outcomes({})} == {("not measured", "not measured")}
    for section in SECTIONS:
        assert f"\n## {section.heading}\n" in text
        for part in section.parts:
            assert f"Not measured: `make {part.make}` writes `{part.file}.json`." in text


def test_every_target_that_a_missing_file_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for section in SECTIONS:
        for part in section.parts:
            assert f"\n{part.make}: " in makefile


def test_a_duel_that_was_interrupted_before_its_first_round_is_not_measured():
    report = duel_file([], [])
    assert first({"step": report}).verdict == "not measured"
    assert "Interrupted before the first round." in written({"step": report}, {})


def test_the_section_of_a_duel_has_speeds_command_settings_and_phases():
    ours = [played(10, 1234, phases={"generate": 1.6, "forward": 3.2}, engine={"draw": 0.64})]  # of 64 / 10 = 6.4 s
    text = written({"step": duel_file(ours, [played(2, 400)])}, {})
    assert "Settings were given: this run searched for none." in text
    assert "| anabranch | 10 | 10 to 10 | 10 to 10 | 1,234 |" in text
    assert """    .venv/bin/python -m benchmarks.step --tune --trl '{"dtype": "float32"}'\n""" in text
    assert "| trl | `dtype=float32` | `A=1` |" in text
    assert "| generate | 1.6 | 25.0 % |  |  |\n| generate: draw | 0.64 | 10.0 % |  |  |\n" in text
    assert "| forward | 3.2 | 50.0 % |" in text


def test_others_that_used_the_machine_are_named_beside_the_number():
    busy = {"other_cores": 0.5}
    found = first({"step": duel_file([{**played(10, 1), **busy}], [{**played(2, 1), **busy}])})
    assert found.measured == "5x (5 to 5), others kept 0.5 cores busy"


def test_the_search_shows_each_candidate_by_what_it_has_other_than_the_first():
    def tried(rate, settings, **more):
        return {"side": "trl", "settings": settings, "env": {}, "rate": rate, "peak_mb": 500.0, **more}

    search = [
        tried(1.0, {"dtype": "float32", "micro_batch": 8}),
        tried(3.0, {"dtype": "bfloat16", "micro_batch": 8}),
        {"side": "trl", "settings": {"dtype": "bfloat16", "micro_batch": 64}, "env": {}, "error": "no memory"},
        tried(4.0, {"dtype": "bfloat16", "micro_batch": 8, "logprobs": False}, for_comparison=True),
    ]
    text = written({"step": duel_file([played(10, 1)], [played(2, 1)], search=search)}, {})
    assert "searched for none" not in text
    assert "beginning with `dtype=float32 micro_batch=8`" in text
    assert "| the first | 1 | 500 |  |" in text
    assert "| `dtype=bfloat16` | 3 | 500 | chosen |" in text
    assert "| `dtype=bfloat16 micro_batch=64` |  |  | cannot run |" in text
    assert "| `dtype=bfloat16 logprobs=False` | 4 | 500 | for comparison only |" in text


def test_a_search_says_whose_settings_came_from_elsewhere_and_what_was_not_back_in_time():
    ours = {"side": "anabranch", "settings": {}, "env": {}, "rate": 1.0, "peak_mb": 5.0}
    late = {"side": "anabranch", "settings": {"rows": 2}, "env": {}, "error": "not back within 420 s"}
    given = written({"step": duel_file([played(10, 1)], [played(2, 1)], search=[ours, late])}, {})
    assert "| `rows=2` |  |  | not back within 420 s |" in given
    assert "Settings of trl were given." in given
    carried = {"side": "trl", "settings": {}, "env": {}, "searched_with": 64}
    text = written({"step": duel_file([played(10, 1)], [played(2, 1)], search=[ours, carried])}, {})
    assert "Settings of trl are those that the search with 64 answers found." in text


def test_the_roofline_shows_the_shares_of_both_sides_and_the_rest_last():
    shares = {"matrix products: head": 0.3, "aten::mul": 0.1, "all other operations": 0.2, "in between": 0.4}
    plain = {"matrix products: head": 0.25, "aten::silu": 0.05, "all other operations": 0.3, "in between": 0.4}
    product = {"product": "mm [2, 3]", "strides": [], "calls": 7, "seconds": 0.5, "teraflops": 1.25}
    train = bench_file(
        "train",
        {f"{name}/seconds": spread_of(1, 2, 3) for name in ("ours", "plain")}
        | {"ours/products_share": spread_of(0.7, 0.75, 0.8)},
        roofline={"ours": shares, "plain": plain},
        products={"ours": [product], "plain": []},
    )
    text = written({"train": train}, {})
    rows = ["| matrix products: head | 30.0 % | 25.0 % |", "| aten::mul | 10.0 % |  |", "| aten::silu |  | 5.0 % |"]
    rows += ["| all other operations | 20.0 % | 30.0 % |", "| in between | 40.0 % | 40.0 % |"]
    assert "\n".join(rows) in text
    assert "| `mm [2, 3]` | 7 | 0.5 | 1.25 |" in text
    assert "| seconds | 2 (1 to 3) | 2 (1 to 3) |  |" in text


def test_a_file_that_no_section_is_about_is_shown_at_the_end():
    text = written({"generate_alone": bench_file("generate", {"tokens_per_second": spread_of(1, 2, 3)})}, {})
    assert "## Further measurements\n\n### generate_alone\n" in text
    assert "| tokens_per_second | 2 | 1 to 3 | 1 to 3 |" in text


def test_notes_stand_at_the_end_of_their_section_as_they_are():
    notes = read_notes("Not shown.\n\n## GRPO step\n\nBound by *memory*.\n\n* tried\n\n## Breadth\n")
    assert notes == {"GRPO step": "Bound by *memory*.\n\n* tried", "Breadth": ""}
    text = written({}, notes)
    assert "\n\nBound by *memory*.\n\n* tried\n\n## Generation against vLLM\n" in text
    assert "Not shown" not in text


def test_notes_below_a_heading_of_no_section_are_refused():
    with pytest.raises(ValueError, match="'Speed'"):
        read_notes("## Speed\n\nFast.\n")


def test_the_notes_of_the_repository_have_every_heading():
    notes = read_notes((ROOT / "benchmarks" / "notes.md").read_text(encoding="utf-8"))
    assert list(notes) == [section.heading for section in SECTIONS]


# ------------------------------------------------------------------------------------------------------- the files


def test_places_of_this_machine_are_replaced_in_the_files_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    told = {"model": "/home/me/model", "log": f"in {ROOT}/x, {ROOT}-b", "other": "/home/meat"}
    path = tmp_path / "step.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    clean = {"model": "~/model", "log": f"in ./x, {ROOT}-b", "other": "/home/meat"}
    assert read_results(tmp_path) == {"step": clean}
    assert json.loads(path.read_text(encoding="utf-8")) == clean
    assert without_places(json.dumps(clean)) == json.dumps(clean)


def test_a_recorded_command_is_shown_as_it_is_typed_in_the_repository():
    assert command(["/x/benchmarks/step.py", "--rounds", "5"]) == ".venv/bin/python -m benchmarks.step --rounds 5"
    assert command(["/x/.venv/bin/anabranch", "bench", "a b"]) == ".venv/bin/anabranch bench 'a b'"


def test_cells_cannot_break_a_table():
    assert table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"
    assert outcome_table([]).count("\n") == 1
