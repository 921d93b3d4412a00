"""Load a model with `transformers`, sample one token, write it: arguments MODEL DTYPE TOKENS..."""

from __future__ import annotations

import sys


def main() -> None:
    """MODEL is a folder, TOKENS are the prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model, dtype, *prompt = sys.argv[1:]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    tokens = torch.tensor([[int(token) for token in prompt]])
    with torch.inference_mode():
        full = loaded.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True, max_new_tokens=1)
    print(int(full[0, -1]), dtype, flush=True)


if __name__ == "__main__":
    main()
