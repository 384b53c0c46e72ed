"""The methods whose stages have other keys than version 0.1 gave them, and why: the one list that the tests of keys read."""

from __future__ import annotations

MOVED = {
    "inf_lora": "version 2: layer bases hold less of the energy by default; blocks of A_t are turned towards the mean input",
    "gain_lora": "version 2: decoder-only models' p_0 is scaled to RMS 1; the key is turned towards the mean p_L, block by "
    "block; over inf_lora what is new there",
    "lfpt5": "version 2: the texts that it writes obey no generation settings that a checkpoint brings",
}
"""Method -> what has changed in its arithmetic or its defaults. Their stages are trained anew; CHANGELOG.md says so too."""
MOVED_LATER = {
    "per_task": "a task's model has the key of a first stage, wherever the task stands: later stages moved there"
}
"""Method -> why all its stages but the first have other keys."""
MOVED_SETTINGS = {"schedule": "the last step of a linear or cosine schedule has a rate above 0"}
"""Variation of the settings in test_keys.py -> why all stages made with it are trained anew."""
