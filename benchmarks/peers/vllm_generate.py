"""vLLM's side of the generation duel: many answers to one prompt, prefix caching on."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Result, Run, Settings, serve


def prepare(settings: Settings) -> Run:
    """Load the model.

    Args:
        settings: `model` (folder), `dtype`, `max_answers`, `max_tokens` (longest prompt and answer together),
            `block_size` (tokens a cache block: only whole blocks of a prompt are shared), `eager` (no compilation),
            `logprobs` (whether every sampled token comes with its log-prob, as RL needs it).
    """
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(
        settings["model"],
        dtype=settings["dtype"],
        seed=settings.get("seed", 1),
        max_model_len=settings["max_tokens"],
        max_num_seqs=settings["max_answers"],
        block_size=settings["block_size"],
        enable_prefix_caching=True,
        enforce_eager=settings["eager"],
        generation_config="vllm",  # not the folder's: nothing but temperature shapes the distribution
        disable_log_stats=True,
    )

    def run(args: dict[str, Any]) -> Result:
        sampling = SamplingParams(
            n=args["answers"],
            temperature=1.0,
            ignore_eos=True,
            max_tokens=args["tokens"],
            min_tokens=0,  # with ignore_eos nothing can end earlier; a minimum would only cost time
            logprobs=0 if settings["logprobs"] else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        (request,) = llm.generate({"prompt_token_ids": args["prompt"]}, sampling, use_tqdm=False)
        answers = [list(output.token_ids) for output in request.outputs]
        result: Result = {"work": sum(len(answer) for answer in answers), "answers": len(answers)}
        result["distinct"] = len({tuple(answer) for answer in answers})
        if settings["logprobs"]:
            result["mean_logprob"] = _mean_logprob([output.logprobs for output in request.outputs], answers)
        return result

    return run


def _mean_logprob(logprobs: list[Any], answers: list[list[int]]) -> float:
    """Mean over all sampled tokens; with `logprobs=0` a position holds the sampled token and nothing else."""
    values: list[float] = []
    for positions, answer in zip(logprobs, answers, strict=True):
        values += [positions[place][token].logprob for place, token in enumerate(answer)]
    return sum(values) / len(values)


if __name__ == "__main__":
    serve(prepare)
