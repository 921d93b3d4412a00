"""The `transformers` side of the generation duel: `model.generate` on a batch of copies of the prompt."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Result, Run, Settings, serve


def prepare(settings: Settings) -> Run:
    """Load the model.

    Args:
        settings: `model` (folder), `dtype`, `attention` (sdpa or eager).
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=settings["dtype"], attn_implementation=settings["attention"]
    ).eval()
    model.generation_config.eos_token_id = None  # `generate` would take it from here: nothing may end early

    def run(args: dict[str, Any]) -> Result:
        prompt = torch.tensor([args["prompt"]]).repeat(args["answers"], 1)
        forced = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=args["tokens"],
            pad_token_id=0,
        )
        torch.manual_seed(args["round"] + 1)
        with torch.inference_mode():
            full = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=forced)
        answers = full[:, prompt.shape[1] :]
        return {
            "work": answers.numel(),
            "answers": len(answers),
            "distinct": len({tuple(answer) for answer in answers.tolist()}),
            "threads": torch.get_num_threads(),
        }

    return run


if __name__ == "__main__":
    serve(prepare)
