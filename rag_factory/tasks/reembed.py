"""`db.reembed`: change the embedding model of a table in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_factory.errors import UsageError
from rag_factory.tasks.command import command
from rag_factory.tasks.reembedding import DROP_OLD, GIVE_UP, Run
from rag_factory.tasks.texts import DATABASE, DEFAULT_WAIT, JSON, YES, seconds, whole_number

if TYPE_CHECKING:
    from rag_factory.tasks.workspace import Workspace

DEFAULT_BATCH = "128"
STEPS = ("--begin", "--cut-over", "--back", DROP_OLD, GIVE_UP, "--status")


@command(
    "reembed",
    begin="Begin: add the second column, then go on.",
    column="The column of embeddings: table.column or schema.table.column.",
    text_column="The column of the texts to embed; with --begin.",
    embedder="The new model, package.module:Class; with --back the old one, for rows that lack it.",
    type="vector or halfvec, with --begin (vector where its index takes the dimensions).",
    cut_over="Let the application use the new embeddings.",
    back="Let it use the old ones again.",
    drop_old="Drop the old embeddings: the end.",
    give_up="Drop the new embeddings: as if it had never begun.",
    status="Show how far it is.",
    batch=f"How many texts the embedder is given at a time ({DEFAULT_BATCH}).",
    memory="maintenance_work_mem for building the index, like 4GB.",
    wait=f"Seconds to wait for a lock on the table ({DEFAULT_WAIT}).",
    yes=YES,
    database=DATABASE,
    json=JSON,
)
def reembed(
    work: Workspace,
    begin: bool = False,
    column: str | None = None,
    text_column: str | None = None,
    embedder: str | None = None,
    type: str | None = None,
    cut_over: bool = False,
    back: bool = False,
    drop_old: bool = False,
    give_up: bool = False,
    status: bool = False,
    batch: str = DEFAULT_BATCH,
    memory: str | None = None,
    wait: str = DEFAULT_WAIT,
    yes: bool = False,
    database: str | None = None,
    json: bool = False,
) -> None:
    """Change the embedding model step by step; resumes."""
    given = dict(zip(STEPS, (begin, cut_over, back, drop_old, give_up, status), strict=True))
    steps = [name for name, is_given in given.items() if is_given]
    if len(steps) > 1:
        raise UsageError(f"{' and '.join(steps)} exclude each other.", fix="Give one of them.")
    if not begin and (text_column or type):
        raise UsageError("--text-column and --type belong to --begin.")
    run = Run(work, column, embedder, whole_number(batch, "--batch"), memory, seconds(wait, "--wait"))
    match steps:
        case ["--begin"]:
            run.begin(text_column, type)
        case ["--cut-over"]:
            run.cut_over()
        case ["--back"]:
            run.go_back()
        case [("--drop-old" | "--give-up") as step]:
            run.end(step, yes=yes, database=database)
        case ["--status"]:
            run.show_status(json=json)
        case _:
            run.go_on()


TASKS = (reembed,)
