"""How answers are generated: every setting that generation obeys, explicit, so that a score's key can hold it."""

from __future__ import annotations

from raycl.files import Json

GREEDY: Json = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
"""Always the likeliest token. Settings that a checkpoint brings are not used (see `raycl.models.load`)."""
