"""How SLAO merges: the schedule lambda(i), what is averaged, and where a stage starts. All inert at stage 1."""

BASE = {"method.name": "slao"}

SPACE = {
    "method.merge_schedule": ["inverse_sqrt", "mean", "none"],
    "method.merges": ["b", "both"],
    "method.start_from": ["tuned", "merged", "random"],
}

FIRST = [{"method.merge_schedule": "inverse_sqrt", "method.merges": "b", "method.start_from": "tuned"}]  # the paper's
