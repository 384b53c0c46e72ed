"""A finished state in use: `raycl generate`, `evaluate`, `append`, `forget`, `log`, `diff` and `tag`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raycl.cli.shared import CodeFlag, DataFlag, StoreFlag, StreamFlag, TrackingFlag, prepare
from raycl.errors import SpecError, first_line
from raycl.reading import read_text

RUN_HELP = (
    "a run's output folder, its name under ~/.raycl/runs, a tag, or a stage's key; @N behind it = after its stage N"
)
Run = Annotated[
    str,
    typer.Argument(help=RUN_HELP),
]
Task = Annotated[
    str | None, typer.Option("--task", help="whose prompt the texts are put into; needed where the method must be told")
]
Model = Annotated[
    str | None, typer.Option("--model", help="where the base model lies now  (default: where the run had it)")
]
Texts = Annotated[
    list[str] | None, typer.Argument(help="texts to answer  (default: a line each of --file, or of standard input)")
]
Tasks = Annotated[str | None, typer.Option("--tasks", help="task,task,...  (default: the run's, or all of --stream)")]
Output = Annotated[str | None, typer.Option(help="folder for matrix, plots and spec  (default: under ~/.raycl/runs)")]
Most = Annotated[
    float | None, typer.Option("--max-forgetting", help="points that earlier tasks may lose on average  (default: any)")
]
NewTag = Annotated[str | None, typer.Option("--tag", help="name that the new state gets if it is accepted")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...  (default: a GPU if there is one)")
]


def generate(
    run: Run,
    texts: Texts = None,
    file: Annotated[str | None, typer.Option("--file", help="text file with a prompt per line")] = None,
    task: Task = None,
    explain: Annotated[bool, typer.Option("--explain", help="say which branches answered, and how strongly")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per answer")] = False,
    tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="longest answer  (default: the run's)")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="put the branches into the weights first, where the method allows it")
    ] = False,
    store: StoreFlag = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Answer texts with what a run has learned, its gates and routes in place.

    With --task a text is put into the prompt that the task was trained with; else it is the whole prompt.
    """
    wanted = _texts(texts, file)
    prepare()
    from raycl.report.answers import print_answers
    from raycl.use.served import load

    with load(run, store, task, model, device, merge) as served:
        answers = served.generate(wanted, tokens, explain, task)
        if as_json:
            for text, answer in zip(wanted, answers, strict=True):
                found = answer.explained(served.branches) if explain else {}
                print(json.dumps({"text": text, "answer": answer.text, **found}, ensure_ascii=False))
            return
        print_answers(wanted, answers, served.branches, explain)


def evaluate(
    run: Run,
    tasks: Tasks = None,
    stream: StreamFlag = None,
    data: DataFlag = None,
    allow_code: CodeFlag = None,
    store: StoreFlag = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Score what a run has learned on tasks: its own, or those of another stream."""
    prepare()
    from raycl.tasks.catalogue import open_catalogue
    from raycl.use.heads import find_head
    from raycl.use.served import evaluate as evaluate_tasks

    head = find_head(run, store)
    said = {"stream": stream, "source": data, "allow_code": bool(allow_code)}
    settings = head.spec.data.model_copy(update={name: value for name, value in said.items() if value is not None})
    known = open_catalogue(settings.stream)
    names = [entry.name for entry in known.streams[0].tasks] if stream and not tasks else head.spec.tasks
    names = [known.require(name) for name in tasks.split(",")] if tasks else names
    for name, found in evaluate_tasks(head, names, settings, model, device):
        further = "".join(f"  {metric} {value:.1f}" for metric, value in found.further.items())
        print(f"{name}: {found.score:.1f}  ({len(found.predictions)} examples){further}")


def probe(
    run: Run,
    file: Annotated[
        str | None, typer.Option("--file", help="plain texts, one per line  (default: summaries of films)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per stage")] = False,
    store: StoreFlag = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Show what a run has cost the model beside its tasks: plain text and instructions, after every stage."""
    texts = _lines(file) if file else None
    prepare()
    from raycl.report.history import print_abilities
    from raycl.use.ability import abilities
    from raycl.use.heads import find_head

    found = abilities(find_head(run, store), texts, model, device)
    if not as_json:
        return print_abilities(list(found))
    for one in found:
        print(json.dumps(asdict(one)), flush=True)


def log(run: Run, store: StoreFlag = None) -> None:
    """Show the stages of a run, newest first: task, key, when, how long, by which raycl."""
    from raycl.analysis.history import log as stages
    from raycl.report.history import print_log
    from raycl.use.heads import find_head

    print_log(stages(find_head(run, store).manifests))


def show(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, with the whole spec")] = False,
    store: StoreFlag = None,
) -> None:
    """Show what a run has learned: its stages, what each holds, the scores; with @N behind it, as it was after stage N."""
    prepare()
    from raycl.report.history import print_state
    from raycl.use.heads import find_head
    from raycl.use.stages import facts, scores_of

    head = find_head(run, store)
    stages, matrix = facts(head), scores_of(head)
    if as_json:
        found = {"name": head.name, "store": head.store.uri, "spec": head.spec.model_dump(mode="json")}
        scores = None if matrix is None else matrix.to_json()
        print(json.dumps(found | {"stages": [asdict(one) for one in stages], "scores": scores}, ensure_ascii=False))
        return
    about = (
        ("run   ", head.name),
        ("model ", head.spec.model.name),
        ("method", head.spec.method.name),
        ("store ", head.store.uri),
    )
    print_state(about, stages, matrix)


def diff(run: Run, other: Run, store: StoreFlag = None) -> None:
    """Show what differs between two runs, stage by stage: settings, data, base model, environment."""
    from raycl.analysis.history import diff as differences
    from raycl.analysis.history import shared
    from raycl.report.history import print_diff
    from raycl.use.heads import find_head

    one, two = (find_head(name, store).manifests for name in (run, other))
    print_diff(shared(one, two), differences(one, two))


def tag(run: Run, name: Annotated[str, typer.Argument(help="such as production")], store: StoreFlag = None) -> None:
    """Give what a run has learned a name, under which all other verbs find it; a name that is taken is moved."""
    from raycl.use.heads import find_head
    from raycl.use.heads import tag as name_it

    name_it(find_head(run, store), name)
    print(f"{name} is now {run}")


def append(
    run: Run,
    task: Annotated[str, typer.Option("--task", help="the task to learn now")],
    stream: StreamFlag = None,
    allow_code: CodeFlag = None,
    most: Most = None,
    name: NewTag = None,
    store: StoreFlag = None,
    tracking: TrackingFlag = None,
    output: Output = None,
) -> None:
    """Train one task more after the last stage of a run, and show what that did to the earlier ones.

    The old state stays what it was. With --max-forgetting a stage that costs more is refused: the tag is not moved, and the
    exit code is 2.
    """
    prepare()
    from raycl.report.history import print_appended
    from raycl.sequence.driver import Options
    from raycl.use.growing import append as grow
    from raycl.use.heads import find_head
    from raycl.use.heads import tag as name_it

    done = grow(find_head(run, store, bool(allow_code)), task, Options(store, tracking, output=output), stream)
    refused = most is not None and done.forgetting > most
    said = "" if most is None else f", at most {most:g} are allowed: {'refused' if refused else 'accepted'}"
    verdict = f"earlier tasks lost {done.forgetting:.2f} points on average{said}"
    print_appended(done.before, done.after, verdict)
    if refused:
        raise typer.Exit(2)
    if name:
        name_it(done.head, name)
        print(f"{name} is now the state with {task}")


def forget(
    run: Run,
    task: Annotated[str, typer.Option("--task", help="the task to take out")],
    name: Annotated[str, typer.Option("--tag", help="name of the state without it")],
    store: StoreFlag = None,
) -> None:
    """Take a task out of what a run has learned, exactly, where the method's stages depend on no other.

    Nothing is trained; the stage stays in the store, and the run is what it was.
    """
    prepare()
    from raycl.use.growing import forget as without
    from raycl.use.heads import find_head
    from raycl.use.heads import tag as name_it

    left = without(find_head(run, store), task)
    name_it(left, name)
    print(f"{name} is now {run} without {task}: {', '.join(left.spec.tasks)}")


def _texts(texts: list[str] | None, file: str | None) -> list[str]:
    """What to answer. Raises SpecError for nothing, and for two sources."""
    if texts and file:
        raise SpecError("raycl generate: texts and --file are both given; give one of them")
    return texts or _lines(file)


def _lines(file: str | None) -> list[str]:
    """The lines of a file, or of standard input, that are not empty. Raises SpecError for one without any."""
    try:
        lines = read_text(Path(file)).splitlines() if file else sys.stdin.read().splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        name = f"--file {file}" if file else "standard input"
        raise SpecError(f"{name}: cannot be read ({why}); give a text file in UTF-8, a text per line") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise SpecError("there is no text; give some, or --file FILE, or lines on standard input")
    return found
