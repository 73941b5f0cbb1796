"""What the page is made of: its files, and the JSON that they ask for."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dcpo_async.errors import LedgerError, ReleasedError
from dcpo_async.monitoring.server import asked_name
from learner.ledger.watching.overview import first_steps
from learner.page.compare import comparison_json
from learner.page.events import ledger_events
from learner.page.fleet import balance, fleet_rows
from learner.page.prompts import pass_rates_json, prompt_json, prompts_json, response_text
from learner.page.runs import ServedRun

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SHOWN_STATUS = (
    "run_id",
    "incarnation",
    "written_at",
    "started_at",
    "release",
    "step",
    "max_steps",
    "last_step_at",
    "seconds_per_step",
    "eta_seconds",
    "unsaved_steps",
    "disk_free_bytes",
    "weights_version",
    "groups_counted",
    "is_finished",
    "is_over",
    "trainer_restarts",
    "waiting_for",
    "evaluation",
    "advice",
    "groups_waiting",
    "groups_leased",
    "generated_responses",
    "generated_tokens",
    "prompts_quarantined",
    "actor_tokens_per_second",
    "responses_in_flight",
    "response_capacity",
    "last_step",
    "canary_bound",
)
NUM_BALANCED = 20
"""Newest points of the curves by which it is said who waits."""


def page_routes(runs: Mapping[str, ServedRun]) -> list[BaseRoute]:
    """Routes of the page for runs by name."""

    def about(path: str, answer: Callable[[ServedRun, Request], Any]) -> Route:
        def endpoint(request: Request) -> Response:
            return json_response(answer(runs[asked_name(runs, request)], request))

        return Route(path, endpoint)

    def text(request: Request) -> Response:
        run = runs[asked_name(runs, request)]
        try:
            content = response_text(run, number(request, "position"), number(request, "index"))
        except ReleasedError as error:
            raise HTTPException(410, str(error)) from None
        return PlainTextResponse(content.encode(errors="replace"))

    def compared(request: Request) -> Response:
        return json_response(comparison_json(list(runs.values())))

    return [
        *_static_routes(),
        Route("/api/runs", lambda request: json_response([_named(run) for run in runs.values()])),
        about("/api/now", lambda run, request: now_json(run)),
        about("/api/curves", lambda run, request: curves_json(run)),
        about("/api/events", lambda run, request: events_json(run)),
        about("/api/pass_rates", lambda run, request: pass_rates_json(run)),
        about(
            "/api/prompts",
            lambda run, request: prompts_json(
                run,
                request.query_params.get("search", "").strip(),
                request.query_params.get("order", "hardest"),
                number(request, "page"),
            ),
        ),
        about(
            "/api/prompt",
            lambda run, request: prompt_json(run, request.query_params.get("id", ""), number(request, "page")),
        ),
        Route("/api/response", text),
        Route("/api/compare", compared),
    ]


def now_json(run: ServedRun) -> dict[str, Any]:
    """The state of a run, and its fleet."""
    status, health = run.look()
    recent = run.curves.recent(NUM_BALANCED)
    return {
        "name": run.name,
        "folder": str(run.folder.path),
        "served_at": time.time(),
        "health": {
            "state": "starting" if run.watched.is_starting else health.state,
            "why": health.why,
            "age_seconds": health.age_seconds,
            "is_live": health.is_live,
        },
        "status": {name: status.get(name) for name in SHOWN_STATUS},
        "settings_set": status.get("settings_set") or [],
        "outcomes": {name: value for name, value in status.items() if name.startswith("total_")},
        "balance": balance(recent),
        "fleet": fleet_rows(status),
        "evaluators": status.get("evaluators_connected") or [],
        "revision": run.curves.revision,
    }


def curves_json(run: ServedRun) -> dict[str, Any]:
    """Curves, held-out accuracy, and the steps at which a start of the learner went on."""
    run.curves.look()
    marks: list[dict[str, Any]] = []
    try:
        steps = run.window.read(first_steps)
        marks = [{"step": step, "text": f"start {start}"} for start, step in sorted(steps.items()) if start > 1]
        marks += [{"step": one.step, "text": one.text} for one in run.window.read(ledger_events) if one.kind == "set"]
    except LedgerError:
        # Curves are there without a ledger, as in a copy of the small files alone.
        pass
    return {**run.curves.points(), "accuracy": run.accuracy(), "marks": marks}


def events_json(run: ServedRun) -> dict[str, Any]:
    """What happened, the newest first, and since when this process has been looking."""
    try:
        known, problem = run.window.read(ledger_events), ""
    except LedgerError as error:
        known, problem = [], str(error)
    events = [*known, *run.seen.events()]
    # What has no time stands by its step, before what has one.
    ordered = sorted(events, key=lambda event: (event.at or 0.0, event.step or 0), reverse=True)
    return {"since": run.seen.since, "problem": problem, "events": [asdict(event) for event in ordered]}


def number(request: Request, name: str) -> int:
    """A whole number of the query, 0 where it is not there; HTTPException 400 for anything else."""
    given = request.query_params.get(name, "0")
    if not given.isdecimal() or len(given) > 12:
        raise HTTPException(400, f"{name}: expected a whole number")
    return int(given)


def json_response(content: Any) -> Response:
    """JSON that every reader takes: what is not finite becomes null."""
    return Response(json.dumps(_finite(content), allow_nan=False), media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _named(run: ServedRun) -> dict[str, Any]:
    status, health = run.look()
    return {"name": run.name, "run_id": status.get("run_id"), "state": health.state, "step": status.get("step")}


def _static_routes() -> list[Route]:
    """Each file that comes with the page, under its name; nothing else of any folder can be asked for."""
    found = []
    for file in files("learner.page").joinpath("static").iterdir():
        kind = KINDS.get(PurePath(file.name).suffix)
        if kind is not None:
            path = "/" if file.name == "page.html" else f"/static/{file.name}"
            found.append(Route(path, _file(file.read_bytes(), kind)))
    return found


def _file(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(content, media_type=f"{kind}; charset=utf-8")
