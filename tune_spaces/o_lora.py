"""O-LoRA's two weights: lambda1 on the overlap with earlier branches, lambda2 on the norms of the new one.

lambda1 is inert at stage 1, so trials that differ in it alone train stage 1 once.
"""

BASE = {"method.name": "o_lora"}

SPACE = {
    "method.lambda1": [0.0, 0.1, 0.5, 1.0, 5.0],
    "method.lambda2": [0.0, 0.1, 0.3],
}

FIRST = [{"method.lambda1": 0.5, "method.lambda2": 0.0}]  # the paper's on orders 1 to 3
