"""Load a model as a run does, sample one token, write it: `python -m benchmarks.ours_first_token MODEL TOKENS...`."""

from __future__ import annotations

import sys


def main() -> None:
    """MODEL is a name or a folder, TOKENS are the prompt."""
    from anabranch.bench.workloads import bench_recipe, load_answerer
    from anabranch.records import Request, Sampling

    model, *prompt = sys.argv[1:]
    parts = load_answerer(bench_recipe(model=model))  # dtype by measuring, as a run has it
    sampling = Sampling(temperature=1.0, max_new_tokens=1)
    request = Request("benchmark", tuple(map(int, prompt)), 1, sampling, seed=1, step=0)
    (rollout,) = parts.engine.generate([request])
    print(int(rollout.graph.segments[-1].tokens[0]), parts.recipe.model.dtype, flush=True)


if __name__ == "__main__":
    main()
