"""Imported by the server of `tests.kit.commands` before it forks, so that no command has to do the same: reads the demo's
tasks, lets transformers make its table of renamed weights, and has MLflow's databases copied."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.demo import DEMO, load_demo
from tests.kit.databases import copy_databases

copy_databases()
get_checkpoint_conversion_mapping("llama")
for _name in DEMO:
    load_demo(open_catalogue().tasks[_name])
