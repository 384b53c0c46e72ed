"""The command `raycl`: its verbs, and what its exit codes mean.

0 = done, 2 = something the user can mend (one message says what and how), 130 = interrupted, 1 = a defect of raycl.
"""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import typer

from raycl.cli import (
    compare,
    data,
    doctor,
    estimate,
    export,
    methods,
    plan,
    predictions,
    reproduce,
    run,
    serve,
    show,
    store,
    sweep,
    sync,
    tasks,
    use,
)
from raycl.errors import UserError, machine_problem

DEFECT = (
    "error: this is a defect of raycl, not of what you gave it. Please open an issue (CONTRIBUTING.md says where) with the "
    "command, the lines above, and the output of `raycl version`. Finished stages are in the store."
)
INTERRUPT_CODE = 130
INTERRUPTED = "interrupted: finished stages are in the store; the same command continues from there"

app = typer.Typer(
    name="raycl",
    help="Continual learning of large language models on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("estimate")(estimate.estimate)
app.command("doctor")(doctor.doctor)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("generate")(use.generate)
app.command("evaluate")(use.evaluate)
app.command("probe")(use.probe)
app.command("predictions")(predictions.predictions)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("push")(export.push)
app.command("import-adapter")(export.import_adapter)
app.command("append")(use.append)
app.command("forget")(use.forget)
app.command("log")(use.log)
app.command("show")(use.show)
app.command("diff")(use.diff)
app.command("tag")(use.tag)
app.command("sync")(sync.sync)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(methods.app, name="methods")
app.command("fields")(show.fields)
app.add_typer(tasks.app, name="tasks")
app.add_typer(data.app, name="data")
app.add_typer(store.app, name="store")
app.command("version")(show.version)
app.command("cards", hidden=True)(show.cards)
app.command("reproductions", hidden=True)(show.reproductions)


def main(*verb: str) -> None:
    """Run the command line: `verb`, if a job names one, and the arguments of this process. Ends the process."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app([*verb, *sys.argv[1:]], prog_name="raycl")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:  # how typer ends: done, wrong flags (2), or an interrupt that it caught itself
        if end.code == INTERRUPT_CODE:
            _end_interrupted()
        raise
    except OSError as error:
        _end_refused(error)
    except Exception:
        traceback.print_exc()
        print(DEFECT, file=sys.stderr)
        sys.exit(1)


def _end_refused(error: OSError) -> NoReturn:
    """Say what the operating system refused and what to do, where that is nobody's defect but the place's."""
    if said := machine_problem(error):
        print(f"error: {UserError(said)}", file=sys.stderr)
        sys.exit(2)
    traceback.print_exc()
    print(DEFECT, file=sys.stderr)
    sys.exit(1)


def _end_interrupted() -> NoReturn:
    """Say what is kept."""
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(INTERRUPT_CODE)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite request to end is taken like Ctrl-C: the run is recorded as killed and its workers end."""
    raise KeyboardInterrupt
