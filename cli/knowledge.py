"""Verbs about text: crawl, search, ask. Ingest has a module of its own."""

from typing import Annotated

import typer
from rich.markup import escape

from cli.client import Api, Document
from cli.jobs import finish_with
from cli.options import settings_of
from cli.output import AsJson, console, errors, print_json, short_error
from cli.watching import follow_job
from runtime.errors import EXIT_FAILED

Collection = Annotated[str, typer.Option("--collection", "-c", help="Collection of documents.")]
Passages = Annotated[int, typer.Option("-k", min=1, max=50, help="Passages at most.")]
Mode = Annotated[str, typer.Option(help="hybrid, vector or text.")]


def crawl(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Page to begin with.")],
    *,
    collection: Collection = "default",
    max_pages: Annotated[int, typer.Option(min=1, help="Pages at most.")] = 1,
    max_depth: Annotated[int, typer.Option(min=0, help="Links to follow from the first page.")] = 0,
    scope: Annotated[str, typer.Option(help="page, prefix, host or domain.")] = "page",
    sitemap: Annotated[
        bool, typer.Option("--sitemap", help="Begin with the site's sitemap too.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it is searchable.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Crawl a site, so that it can be searched and asked about."""
    payload = {
        "url": url,
        "collection": collection,
        "max_pages": max_pages,
        "max_depth": max_depth,
        "scope": scope,
        "sitemap": sitemap,
    }
    with Api(settings_of(context)) as api:
        job = api.post("/v1/jobs", {"kind": "crawl", "payload": payload})
        if wait:
            job = follow_job(api, job["id"], quiet=as_json)
    finish_with(job, as_json=as_json)


def search(
    context: typer.Context,
    query: Annotated[list[str], typer.Argument(help="Words or a question.")],
    *,
    collection: Collection = "default",
    k: Passages = 5,
    mode: Mode = "hybrid",
    as_json: AsJson = False,
) -> None:
    """Search passages by meaning and by words."""
    with Api(settings_of(context)) as api:
        found = _search(api, " ".join(query), collection=collection, k=k, mode=mode)
    if as_json:
        print_json(found)
        return
    show_hits(found["hits"])
    if not found["hits"]:
        console.print("[dim]nothing found: has the collection been filled? `xnai crawl URL`[/]")


def _search(api: Api, query: str, *, collection: str, k: int, mode: str) -> Document:
    return api.post("/v1/search", {"query": query, "collection": collection, "k": k, "mode": mode})


def show_hits(hits: list[Document]) -> None:
    """Print passages, numbered as answers cite them."""
    for number, hit in enumerate(hits, 1):
        document = hit["document"]
        title = document.get("title") or document.get("url") or document["id"]
        place = f"{escape(document.get('url') or '')}  {hit['score']:.3f}"
        console.print(f"[bold][{number}][/] {escape(title)}  [dim]{place}[/]")
        console.print(f"    {escape(_excerpt(hit['text']))}\n")


def _excerpt(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def ask(
    context: typer.Context,
    question: Annotated[list[str], typer.Argument(help="What you want to know.")],
    *,
    collection: Collection = "default",
    k: Passages = 5,
    read: Annotated[
        int,
        typer.Option(min=1, max=50, help="Passages the model reads; small ones do best with 1."),
    ] = 1,
    mode: Mode = "hybrid",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Ask a question: cited passages first, then the answer as it is written."""
    text = " ".join(question)
    with Api(settings_of(context)) as api:
        if not as_json:
            show_hits(_search(api, text, collection=collection, k=k, mode=mode)["hits"])
        job = submit_question(
            api, text, collection=collection, k=read, mode=mode, max_tokens=max_tokens
        )
        if not as_json:
            _stream_answer(api, job["id"])
        job = follow_job(api, job["id"], quiet=as_json)
    if as_json:
        print_json(job)
    elif job["state"] == "succeeded":
        show_citations(job["result"])
    else:
        errors.print(f"[red]{job['state']}[/] {escape(short_error(job.get('error')))}")
    if job["state"] != "succeeded":
        raise typer.Exit(EXIT_FAILED)


def submit_question(
    api: Api, question: str, *, collection: str, k: int, mode: str, max_tokens: int
) -> Document:
    """Submit a generate job that retrieves from a collection."""
    retrieve = {"collection": collection, "k": k, "mode": mode}
    payload = {
        "prompt": question,
        "retrieve": retrieve,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return api.post("/v1/jobs", {"kind": "generate", "payload": payload, "priority": 9})


def _stream_answer(api: Api, job_id: str) -> None:
    """Print tokens as they come, until the job is settled."""
    with api.events(f"/v1/jobs/{job_id}/events") as events:
        for event in events:
            if event.type == "job.token":
                console.print(event.data.get("text", ""), end="", markup=False)
            elif event.type == "job.settled":
                break
    console.print()


def show_citations(result: Document) -> None:
    """Print what an answer rests on, and which model wrote it."""
    model = escape(str(result.get("model", "the local model")))
    console.print(f"\n[dim]written by {model}, {result['finish_reason']}[/]")
    for number, citation in enumerate(result["citations"], 1):
        title, url = (escape(citation.get(name) or "") for name in ("title", "url"))
        console.print(f"[bold][{number}][/] {title}  [dim]{url}[/]")
