"""This library's side of the generation duels: its engine, loaded as a run loads it, through its public parts."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Result, Run, Settings, serve


def prepare(settings: Settings) -> Run:
    """Load the model.

    Args:
        settings: `model`, `dtype`, `max_rows` (answers decoded at the same time).
    """
    import torch

    from anabranch.bench.workloads import bench_recipe, load_answerer
    from anabranch.records import Request, Sampling

    overrides = [f"engine.max_rows={settings['max_rows']}"]
    parts = load_answerer(bench_recipe(model=settings["model"], dtype=settings["dtype"], overrides=overrides))

    def run(args: dict[str, Any]) -> Result:
        sampling = Sampling(temperature=1.0, max_new_tokens=args["tokens"])  # no stop token: nothing ends early
        prompt = tuple(args["prompt"])
        request = Request("benchmark", prompt, args["answers"], sampling, seed=1, step=args["round"] + 1)
        parts.engine.load_weights(request.step)
        answers = [rollout.graph.segments[-1] for rollout in parts.engine.generate([request])]
        count = sum(len(answer.tokens) for answer in answers)
        return {
            "work": count,
            "answers": len(answers),
            "distinct": len({tuple(answer.tokens.tolist()) for answer in answers}),
            "mean_logprob": sum(float(answer.engine_logprob.sum()) for answer in answers) / count,
            "phases": parts.engine.times,
            "threads": torch.get_num_threads(),
        }

    return run


if __name__ == "__main__":
    serve(prepare)
