"""AM-LoRA's lambda, chosen anew for every task: a tree.

The choice at stage t leaves the stages before t shared: over 5 tasks the 243 sequences of 5 stages are 363 stage runs, not
1,215. The paper lists such weights for its long orders.
"""

from raycl.sweep.spaces import per_stage

BASE = {"method.name": "am_lora"}

SPACE = {"method.l1": per_stage([1e-5, 1e-3, 1e-2])}

FIRST = [{"method.l1": 1e-5}]  # the paper's on orders 1 to 3: the same at every stage
