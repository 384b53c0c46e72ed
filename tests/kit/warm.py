"""Imported by the server of `tests.kit.commands` before it forks: reads the demo's tasks, so that no command has to."""

from raycl.tasks.catalogue import open_catalogue
from raycl.tasks.demo import DEMO, load_demo

for _name in DEMO:
    load_demo(open_catalogue().tasks[_name])
