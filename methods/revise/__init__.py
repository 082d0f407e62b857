"""ReVISE: learning to refine at test time via intrinsic self-verification (ICML 2025, arXiv 2502.14565).

After an answer a model says in one more token whether it is done or wants to try again, and what it writes then is read with
the first attempt before it. It learns to, in two stages, from its own right and wrong solutions; how sure it is that it is
done weighs its answers in a vote::

    tokens = add_tokens(tokenizer, model)          # then fine-tune the model on solutions
    fit(model, problems, tokens, ReviseConfig(), seed=0)
    generate(model, tokenizer, prompts, tries=2, vote="weighted", n=8).answers

``text`` encodes problems, ``attempts`` and ``preferences`` make the training rows, ``loss`` holds the objective, ``training`` a stage, ``curriculum`` the
stages; ``trajectories``, ``voting`` and ``inference`` are for test time, ``verification`` measures what the model knows.
"""

import importlib
from typing import Any

_HOMES = {
    "ReviseConfig": "curriculum",
    "Tokens": "tokens",
    "add_tokens": "tokens",
    "find_tokens": "tokens",
    "fit": "curriculum",
    "generate": "inference",
    "solve": "inference",
}

__all__ = ["ReviseConfig", "Tokens", "add_tokens", "find_tokens", "fit", "generate", "solve"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: whoever needs the rows alone does not depend on the sampler."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
