"""Prints digests of all that evaluation computes, in a process of its own for each instruction set."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import q4hifi


def digest(*parts: object) -> str:
    """Digest arrays, and what else there is by its text."""
    found = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else part
        found.update(data if isinstance(data, bytes) else repr(data).encode())
    return found.hexdigest()[:16]


def figures(path: Path, base: Path, text: str, folder: Path) -> dict[str, str]:
    """Digests of what a model gives, by what it is; ``base`` is the one that it is compared with."""
    model = q4hifi.Model(path)
    tokens = model.tokenize(text)[:48]
    sequence = model.sequence()
    one_by_one = [sequence.evaluate([token]) for token in tokens[:12]]
    written = list(model.generate_tokens(tokens[:5], n=12, seed=7))
    answers, imatrix = folder / f"{path.stem}.kld", folder / f"{path.stem}.imatrix.gguf"
    scored = q4hifi.perplexity(model, text, save_log_probs=answers, n_ctx=32, n_chunks=2)
    diverged = q4hifi.kl_divergence(model, folder / f"{base.stem}.kld").tokens
    q4hifi.collect_importance(model, text, fisher_chunks=1, n_ctx=32, n_chunks=2).save(imatrix)
    fisher = model.fisher(tokens[:20])
    return {
        "logits of many tokens": digest(model.logits(tokens)),
        "logits of few tokens": digest(model.logits(tokens[:3])),
        "logits token by token": digest(*one_by_one),
        "seeded tokens": digest(written),
        "perplexity": digest(scored.nll),
        "log-probabilities": digest(answers.read_bytes()),
        "divergence": digest(*diverged),
        "imatrix": digest(imatrix.read_bytes()),
        "fisher": digest(*(fisher[name] for name in sorted(fisher))),
    }


if __name__ == "__main__":
    text, folder, *paths = sys.argv[1:]
    found = {path: figures(Path(path), Path(paths[0]), text, Path(folder)) for path in paths}
    print(json.dumps(found))
