"""The routes: what each one answers, in both frameworks."""

import base64
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx2
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import WebSocketDenialResponse

from callbackkit import (
    CallbackManager,
    Delivery,
    Event,
    Gone,
    Limits,
    MemoryStore,
    Position,
    RetryPolicy,
    StoreUnavailableError,
    Transport,
)
from callbackkit.http.starlette import allow_anyone
from callbackkit.http.table import ROUTES, Route
from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import Sender, WebhookRequest, WebhookResponse
from callbackkit.webhooks.transport import WebhookTransport
from callbackkit.wire.eventstream import EventStreamReader
from tests.http.rig import (
    PATIENCE,
    AppOf,
    Connection,
    Made,
    client_of,
    in_both,
    made,
    serving,
)

pytestmark = in_both


def open_app(app_of: AppOf, manager: CallbackManager, **options: Any) -> Any:
    return app_of(manager, allow_anyone, **options)


# Sessions.


def test_a_session_is_created_with_its_token_and_cookie(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        answer = client.post("/callbacks/sessions", json={"events": ["progress"], "ttl": 60})
        content = answer.json()
        path = f"/callbacks/sessions/{content['session_id']}"
        assert answer.status_code == 201
        assert answer.headers["location"] == path
        assert answer.headers["cache-control"] == "no-store"
        assert "authorization" in answer.headers["vary"].lower()
        assert answer.headers["set-cookie"] == (
            f"callbackkit_session={content['token']}; HttpOnly; Path={path}; SameSite=strict"
        )
        assert content["status"] == "active"
        assert content["config"]["events"] == ["progress"]
        assert "webhook_secret" not in content
        assert datetime.fromisoformat(content["created_at"]).tzinfo is UTC


def test_without_a_body_a_session_has_the_defaults(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        answer = client.post("/callbacks/sessions")
        assert answer.status_code == 201
        assert answer.json()["config"]["delivery_method"] == "sse"


def test_over_tls_the_cookie_is_for_tls_only(app_of: AppOf) -> None:
    app = open_app(app_of, CallbackManager())
    with client_of(app, base_url="https://testserver") as client:
        assert "; Secure" in client.post("/callbacks/sessions").headers["set-cookie"]


class Hook(Transport):
    """Is called as the webhooks are, and never works."""

    name = "webhook"
    retry = RetryPolicy(schedule=(0.01,), jitter=0.0)

    async def send(self, delivery: Delivery) -> None:
        raise Gone("nobody there")


def test_the_secret_of_webhooks_is_told_once(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager(transports=[Hook()]))) as client:
        config = {"webhook_url": "https://example.com/hook", "headers": {"X-Key": "s3cr3t-value"}}
        created = client.post("/callbacks/sessions", json=config).json()
        assert created["webhook_secret"].startswith("whsec_")
        assert created["config"]["headers"] == {"X-Key": "***"}
        shown = client.get(f"/callbacks/sessions/{created['session_id']}").text
        assert "whsec_" not in shown
        assert "s3cr3t-value" not in shown


# Webhooks: where they go, and what they are signed with.

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOOKED = {"webhook_url": "https://example.com/hook", "webhook_secret": SECRET}


class Answering(Sender):
    """Posts nothing, and answers with a status; keeps the requests."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[WebhookRequest] = []

    async def start(self, guard: Guard) -> None:
        del guard

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        self.requests.append(request)
        return WebhookResponse(self.status, {"x-echo": str(request.headers)}, b"no " + request.body)

    async def aclose(self) -> None:
        """Nothing is open."""


def hooks(status: int = 204) -> WebhookTransport:
    return hooks_by(Answering(status))


def hooks_by(sender: Sender) -> WebhookTransport:
    retry = RetryPolicy(schedule=(0.0,), jitter=0.0)
    return WebhookTransport(sender=sender, retry=retry)


def test_a_secret_is_replaced_and_told(app_of: AppOf) -> None:
    manager = CallbackManager(transports=[hooks()])
    with client_of(open_app(app_of, manager)) as client:
        session = made(client, **HOOKED)
        before = datetime.now(UTC)
        answer = client.post(f"{session.path}/secret", json={"overlap": 60})
        told = answer.json()
        assert (answer.status_code, told["session_id"]) == (200, session.id)
        assert told.keys() == {"session_id", "webhook_secret", "previous_until"}
        assert told["webhook_secret"] not in {SECRET, OTHER}
        until = datetime.fromisoformat(told["previous_until"])
        assert 59 <= (until - before).total_seconds() <= 70
        # One that is given, and a body with nothing in it.
        given = {"webhook_secret": OTHER}
        assert client.post(f"{session.path}/secret", json=given).json()["webhook_secret"] == OTHER
        assert client.post(f"{session.path}/secret").status_code == 200


def test_a_secret_that_others_know_may_be_replaced_at_once(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager(transports=[hooks()]))) as client:
        session = made(client, **HOOKED)
        told = client.post(f"{session.path}/secret", json={"overlap": 0}).json()
        assert told["previous_until"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"webhook_secret": "s3cr3t"}, "webhook_secret"),
        ({"webhook_secret": 7}, "webhook_secret"),
        ({"overlap": -1}, "overlap"),
        ({"overlap": 604_801}, "overlap"),
        ({"overlap": None}, "overlap"),
        ({"overlap": True}, "overlap"),
        ({"secret": "s3cr3t"}, "secret"),
    ],
    ids=repr,
)
def test_a_wrong_rotation_is_refused(app_of: AppOf, body: Any, field: str) -> None:
    with client_of(open_app(app_of, CallbackManager(transports=[hooks()]))) as client:
        answer = client.post(f"{made(client, **HOOKED).path}/secret", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert "s3cr3t" not in answer.text


def test_what_has_no_secret_or_no_endpoint_is_a_conflict(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        for method, route in (("POST", "secret"), ("GET", "endpoint")):
            answer = client.request(method, f"{session.path}/{route}")
            assert answer.status_code == 409
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "callbackkit:unsuited-session"


def test_an_ended_session_keeps_its_secret(app_of: AppOf) -> None:
    manager = CallbackManager(transports=[hooks()])
    with client_of(open_app(app_of, manager)) as client:
        session = made(client, **HOOKED)
        session.end(manager)
        answer = client.post(f"{session.path}/secret")
        assert (answer.status_code, answer.json()["type"]) == (409, "callbackkit:session-ended")


def test_endpoint_and_secret_are_for_whoever_has_the_token_and_counted(app_of: AppOf) -> None:
    manager = CallbackManager(transports=[hooks()], limits=Limits(max_requests=3))
    with client_of(app_of(manager, lambda _, session: None if session else True)) as client:
        session = made(client, **HOOKED)
        for method, route in (("POST", "secret"), ("GET", "endpoint")):
            path = f"{session.path}/{route}"
            assert client.request(method, path).status_code == 401
        path = f"{session.path}/secret"
        statuses = [client.post(path, headers=session.headers).status_code for _ in range(4)]
        assert statuses == [200] * 3 + [429]
        assert client.get(f"{session.path}/endpoint", headers=session.headers).status_code == 429


def test_an_endpoint_is_shown_as_it_does(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager(transports=[hooks(503)]))) as client:
        session = made(client, **HOOKED)
        shown = client.get(f"{session.path}/endpoint").json()
        assert shown["session_id"] == session.id
        assert shown["name"].startswith("webhook:example.com:")
        assert (shown["phase"], shown["is_healthy"], shown["p50"]) == ("closed", True, None)
        session.emit()
        shown = eventually(lambda: failing(client.get(f"{session.path}/endpoint").json()))
        assert shown["is_healthy"] is False
        assert shown["failures"] > 0
        assert shown["p95"] >= shown["p50"] >= 0
        assert datetime.fromisoformat(shown["last_failure_at"]).tzinfo is not None
        assert shown["last_success_at"] is None


def failing(shown: dict[str, Any]) -> dict[str, Any] | None:
    return shown if shown["failed_attempts"] else None


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x", "https://10.0.0.1/x", "http://example.com/x", "https://[::1]/x"],
)
def test_no_url_that_may_not_be_posted_to_is_taken(app_of: AppOf, url: str) -> None:
    with client_of(open_app(app_of, CallbackManager(transports=[hooks()]))) as client:
        session = made(client, **HOOKED)
        for answer in (
            client.post("/callbacks/sessions", json={"webhook_url": url}),
            client.patch(session.path, json={"webhook_url": url}),
        ):
            assert (answer.status_code, answer.json()["field"]) == (422, "webhook_url")
        shown = client.get(session.path).json()
        assert shown["config"]["webhook_url"] == HOOKED["webhook_url"]


def test_no_answer_and_no_log_repeats_a_secret(
    app_of: AppOf, caplog: pytest.LogCaptureFixture
) -> None:
    """All routes, after everything has gone wrong; secrets are in two answers, and signatures."""
    caplog.set_level(logging.DEBUG, "callbackkit")
    sender = Answering(500)
    manager = CallbackManager(transports=[hooks_by(sender)])
    config = {
        "webhook_url": "https://example.com/hook?key=query-s3cr3t",
        "webhook_secret": SECRET,
        "headers": {"Authorization": "Bearer header-s3cr3t"},
        "options": {"key": "option-s3cr3t"},
    }
    texts: list[str] = []
    with client_of(open_app(app_of, manager)) as client:
        session = made(client, **config)
        assert client.post(f"{session.path}/secret", json={"webhook_secret": OTHER}).is_success
        last = client.post(f"{session.path}/secret").json()["webhook_secret"]
        session.emit()
        eventually(lambda: client.get(f"{session.path}/dead-letters").json()["dead_letters"])
        attempts = client.get(f"{session.path}/attempts").json()["attempts"]
        assert {each["error"] for each in attempts} == {"SendError: HTTP 500"}
        bad = {"webhook_secret": f"{SECRET}!", "headers": {"X": "header-s3cr3t\n"}}
        texts += [
            client.post("/callbacks/sessions", json=bad).text,
            client.post(f"{session.path}/secret", json={"webhook_secret": f"{SECRET}!"}).text,
            client.patch(session.path, json={"webhook_secret": SECRET}).text,
            client.patch(session.path, json={"headers": bad["headers"]}).text,
        ]
        # Or its streams would not end; and it is there until all others were asked.
        session.end(manager)
        walked = sorted(filter(is_walked, ROUTES), key=lambda route: route.method == "DELETE")
        texts += [seen(client, session, route) for route in walked]
    assert sender.requests
    texts += [f"{record.__dict__} {record.getMessage()}" for record in caplog.records]
    assert len(caplog.records) > 3
    secrets = [each.removeprefix("whsec_") for each in (SECRET, OTHER, last)]
    for text in texts:
        assert "s3cr3t" not in text
        assert not any(secret in text for secret in secrets)


def is_walked(route: Route) -> bool:
    """Those that tell a secret are seen by themselves, and one that does not end not at all."""
    return route.name not in {"create_session", "rotate_secret", "stream_all_events"}


def seen(client: Any, session: Made, route: Route) -> str:
    path = "/callbacks" + route.path.format(session_id=session.id)
    answer = client.request(route.method, path)
    return f"{answer.status_code} {answer.headers} {answer.text}"


def test_a_session_is_shown_as_it_stands(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        shown = client.get(session.path).json()
        assert (shown["state"], shown["status"], shown["owner"]) == ("active", "active", None)
        assert (shown["first_position"], shown["total_count"]) == (None, 0)
        first, last = session.emit(), session.emit()
        session.end(manager)
        shown = client.get(session.path).json()
        assert (shown["state"], shown["total_count"]) == ("ended", 2)
        assert (shown["first_position"], shown["position"]) == (first["id"], last["id"])
        assert shown["stats"]["events_sent"] == 2


def test_sessions_are_listed_page_by_page(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        sessions = sorted((made(client) for _ in range(3)), key=lambda each: each.id)
        sessions[1].end(manager)
        page = client.get("/callbacks/sessions?limit=2").json()
        assert [each["session_id"] for each in page["sessions"]] == [s.id for s in sessions[:2]]
        assert page["has_more"] is True
        page = client.get("/callbacks/sessions", params={"after": page["cursor"]}).json()
        assert [each["session_id"] for each in page["sessions"]] == [sessions[2].id]
        assert page["has_more"] is False
        cursor = page["cursor"]
        page = client.get("/callbacks/sessions", params={"after": cursor}).json()
        assert page == {"sessions": [], "cursor": cursor, "has_more": False}
        page = client.get("/callbacks/sessions?state=ended").json()
        assert [each["session_id"] for each in page["sessions"]] == [sessions[1].id]
        assert client.get("/callbacks/sessions?state=dead").json()["field"] == "state"


def test_a_session_is_changed(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        answer = client.patch(session.path, json={"events": ["progress"]})
        assert answer.status_code == 200
        assert answer.json()["config"]["events"] == ["progress"]
        answer = client.patch(session.path, json={"ttl": 1})
        assert answer.status_code == 422
        assert answer.json()["field"] == "ttl"


def test_a_deleted_session_is_gone_then_unknown(app_of: AppOf) -> None:
    manager = CallbackManager(linger=0.05)
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        answer = client.delete(session.path)
        assert (answer.status_code, answer.content) == (204, b"")
        gone = client.get(session.path)
        assert gone.status_code == 410
        assert gone.json()["type"] == "callbackkit:session-deleted"
        assert client.get(f"{session.path}/events").status_code == 410
        assert client.get(f"{session.path}/sse").status_code == 204
        assert client.delete(f"/callbacks/sessions/{'0' * 32}").status_code == 404


@pytest.mark.parametrize(
    "session_id", ["x", "0" * 32, "ü", "a%00b", "0" * 5_000, "%0d%0aSet-Cookie:%20a=b", "..%5c"]
)
def test_an_id_of_no_session_is_unknown(app_of: AppOf, session_id: str) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        for suffix in ("", "/events", "/sse", "/stats", "/attempts"):
            answer = client.get(f"/callbacks/sessions/{session_id}{suffix}")
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
            assert "set-cookie" not in answer.headers


# Events.


def test_events_are_read_page_by_page(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        ids = [session.emit(test_data={"progress": n / 10})["id"] for n in range(5)]
        page = client.get(f"{session.path}/events?limit=3").json()
        assert [each["id"] for each in page["events"]] == ids[:3]
        assert (page["cursor"], page["has_more"]) == (ids[2], True)
        assert (page["total_count"], page["gap"]) == (5, False)
        assert page["events"][0]["event_type"] == "progress"
        assert page["events"][0]["metadata"] == {"test": True}
        page = client.get(f"{session.path}/events", params={"after": page["cursor"]}).json()
        assert [each["id"] for each in page["events"]] == ids[3:]
        assert page["has_more"] is False
        page = client.get(f"{session.path}/events?after=now").json()
        assert (page["events"], page["cursor"]) == ([], ids[-1])
        for oldest in ("", "?after=", "?after=earliest", "?since=null", "?since=undefined"):
            page = client.get(f"{session.path}/events{oldest}").json()
            assert len(page["events"]) == 5


def test_events_are_read_since_a_timestamp(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        events = [session.emit() for _ in range(3)]
        since = events[0]["timestamp"]
        for text in (since, since.replace("Z", "+00:00"), since.replace("T", " ")):
            page = client.get(f"{session.path}/events?since={text}").json()
            assert [each["id"] for each in page["events"]] == [each["id"] for each in events[1:]]


def test_only_some_types_are_read(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        for name in ("a", "b", "c", "a"):
            session.emit(event_type=name)
        for query in ("types=a,b", "types=a&types=b", "types=a,,b,callbackkit.gap"):
            page = client.get(f"{session.path}/events?{query}").json()
            assert [each["event_type"] for each in page["events"]] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A1", "limit"),
        ("wait=-1", "wait"),
        ("wait=31", "wait"),
        ("wait=nan", "wait"),
        ("wait=1e999", "wait"),
        ("since=yesterday", "since"),
        ("since=2026-13-01T00:00:00Z", "since"),
        ("types=A%20b", "types"),
        ("types=" + ",".join(f"t{n}" for n in range(257)), "types"),
        ("after=nonsense", "after"),
        ("after=%0d%0aX-Bad:%201", "after"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(app_of: AppOf, query: str, field: str | None) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        answer = client.get(f"{session.path}/events?{query}")
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json().get("field") == field
        assert "x-bad" not in answer.headers


def test_a_foreign_position_gives_a_gap(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session, other = made(client), made(client)
        theirs, ours = other.emit()["id"], session.emit()["id"]
        page = client.get(f"{session.path}/events?after={theirs}").json()
        assert page["gap"] is True
        assert [each["event_type"] for each in page["events"]] == ["callbackkit.gap", "progress"]
        assert page["events"][1]["id"] == ours


async def test_a_poll_waits_for_an_event(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = open_app(app_of, manager)
        session = await manager.create_session()
        polling = Connection(app, f"/callbacks/sessions/{session.id}/events", query="wait=10")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(polling.run)
            await until(lambda: manager._readers.kinds(session.id)["polling"])
            await session.progress(0.5)
            await polling.until_done()
        assert [each["data"] for each in json.loads(polling.body)["events"]] == [{"progress": 0.5}]


async def test_a_poll_ends_when_its_client_leaves(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = open_app(app_of, manager)
        session = await manager.create_session()
        polling = Connection(app, f"/callbacks/sessions/{session.id}/events", query="wait=30")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(polling.run)
            await until(lambda: manager._readers.kinds(session.id)["polling"])
            polling.left.set()
            await polling.until_done()
        assert not manager._readers.kinds(session.id)["polling"]


async def test_a_poll_whose_session_is_deleted_is_told(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = open_app(app_of, manager)
        session = await manager.create_session()
        polling = Connection(app, f"/callbacks/sessions/{session.id}/events", query="wait=30")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(polling.run)
            await until(lambda: manager._readers.kinds(session.id)["polling"])
            await manager.delete_session(session.id)
            await polling.until_done()
        assert polling.status == 410


async def until(is_so: Any) -> None:
    with anyio.fail_after(PATIENCE):
        while not is_so():
            await anyio.lowlevel.checkpoint()


def test_old_events_are_cleared(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        events = [session.emit() for _ in range(6)]
        answer = client.delete(f"{session.path}/events", params={"before": events[2]["id"]})
        assert answer.json() == {"cleared_count": 2, "session_id": session.id}
        stamp = events[4]["timestamp"].replace("Z", "+00:00")
        # "+" is left as it is, which means a space.
        answer = client.delete(f"{session.path}/events?before={stamp}")
        assert answer.json()["cleared_count"] == 2
        page = client.get(f"{session.path}/events").json()
        assert [each["id"] for each in page["events"]] == [each["id"] for each in events[4:]]
        assert client.delete(f"{session.path}/events").json()["cleared_count"] == 2
        problem = client.delete(f"{session.path}/events?before=x").json()
        assert (problem["status"], problem["field"]) == (422, "before")
        assert problem["detail"] == f"before: {problem['reason']}"


def test_an_ended_session_keeps_its_events(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        session.emit()
        session.end(manager)
        answer = client.delete(f"{session.path}/events")
        assert answer.status_code == 409
        assert answer.json()["type"] == "callbackkit:session-ended"
        assert client.get(f"{session.path}/events").json()["total_count"] == 1


# Test events.


def test_a_test_event_is_emitted(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        body = {"event_type": "tool_use", "test_data": {"tool_name": "search", "more": [1]}}
        event = session.emit(**body)
        assert event["event_type"] == "tool_use"
        assert event["data"] == body["test_data"]
        assert event["metadata"] == {"test": True}


@pytest.mark.parametrize(
    "event_type",
    [
        *("thinking", "tool_use", "tool_result", "progress", "completion", "workflow_start"),
        *("workflow_step", "workflow_complete", "model_selection", "streaming_chunk", "error"),
        "my.own",
    ],
)
def test_every_type_has_a_sample(app_of: AppOf, event_type: str) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        assert made(client).emit(event_type=event_type)["event_type"] == event_type


def test_a_hundred_test_events_are_all_kept(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        for n in range(100):
            session.emit(event_type="progress", test_data={"progress": n / 100})
        page = client.get(f"{session.path}/events?limit=1000").json()
        assert [each["data"]["progress"] for each in page["events"]] == [
            n / 100 for n in range(100)
        ]


def test_a_test_event_that_is_left_out_is_null(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client, events=["error"])
        answer = client.post(f"{session.path}/test", json={"event_type": "progress"})
        assert answer.json() == {"session_id": session.id, "event": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"event_type": "Bad Type"}, "event_type"),
        ({"event_type": "callbackkit.gap"}, "event_type"),
        ({"event_type": 5}, "event_type"),
        ({"test_data": []}, "test_data"),
        ({"test_data": {"progress": 40}}, "test_data.progress"),
        ({"event_type": "x", "test_data": {"a": "\ud800"}}, "test_data.a"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_wrong_test_event_is_refused(app_of: AppOf, body: Any, field: str) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        answer = client.post(
            f"{session.path}/test",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 422
        assert answer.json()["field"] == field
        assert answer.json()["reason"]


def test_an_ended_session_takes_no_test_events(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        session.end(manager)
        answer = client.post(f"{session.path}/test", json={})
        assert answer.status_code == 409
        assert answer.json()["type"] == "callbackkit:session-ended"


# Bodies.

BAD_BODIES = {
    "cut": b'{"events": [',
    "nan": b'{"ttl": NaN}',
    "large": b'{"ttl": 1e999}',
    "twice": b'{"ttl": 1, "ttl": 2}',
    "deep": b"[" * 100_000,
    "utf-8": b'{"events": ["\xff"]}',
    "utf-16": '{"ttl": 1}'.encode("utf-16"),
    "list": b"[1]",
    "text": b'"x"',
    "digits": b'{"ttl": ' + b"9" * 5_000 + b"}",
}
BODY_ROUTES = [
    ("POST", "/callbacks/sessions"),
    ("PATCH", "{path}"),
    ("POST", "{path}/test"),
    ("POST", "{path}/secret"),
    ("POST", "{path}/dead-letters/redrive"),
]


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_malformed_body_is_a_problem_on_every_route(app_of: AppOf, body: bytes) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        path = made(client).path
        for method, route in BODY_ROUTES:
            answer = client.request(
                method,
                route.format(path=path),
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 400, route
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "callbackkit:malformed"


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_a_body_has_to_say_that_it_is_json(app_of: AppOf, content_type: str | None) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = client.post("/callbacks/sessions", content=b"{}", headers=headers)
        assert answer.status_code == 400


def test_unknown_keys_are_named(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        path = made(client).path
        for method, route in BODY_ROUTES:
            answer = client.request(method, route.format(path=path), json={"evnets": []})
            assert answer.status_code == 422
            assert answer.json()["field"] == "evnets"


async def test_a_body_that_is_too_large_is_not_read(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = open_app(app_of, manager)
        for headers in ({}, {"content-length": str(10_485_760)}):
            posting = Connection(
                app,
                "/callbacks/sessions",
                "POST",
                headers={"content-type": "application/json", **headers},
                chunks=[b"x" * 65_536] * 160,
            )
            await posting.run()
            assert posting.status == 413
            assert posting.answered["connection"] == "close"
            assert posting.taken <= (1 if headers else 18)


async def test_a_client_that_leaves_while_it_sends_is_no_error(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        posting = Connection(open_app(app_of, manager), "/callbacks/sessions", "POST", chunks=[])
        posting.left.set()
        await posting.run()


def test_an_event_that_is_too_large_is_refused(app_of: AppOf) -> None:
    manager = CallbackManager(limits=Limits(max_event_bytes=100))
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        body = {"event_type": "x", "test_data": {"text": "x" * 200}}
        answer = client.post(f"{session.path}/test", json=body)
        assert answer.status_code == 413
        assert answer.json()["field"] == "max_event_bytes"


# Limits.


def test_a_limit_reached_says_when_to_come_back(app_of: AppOf) -> None:
    manager = CallbackManager(limits=Limits(max_sessions=1))
    with client_of(open_app(app_of, manager)) as client:
        made(client)
        answer = client.post("/callbacks/sessions", json={})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["field"] == "max_sessions"


def test_requests_are_counted_by_session_and_by_address(app_of: AppOf) -> None:
    manager = CallbackManager(limits=Limits(max_requests=3))
    with client_of(open_app(app_of, manager)) as client:
        first, second = made(client), made(client)
        assert [client.get(first.path).status_code for _ in range(5)] == [200] * 3 + [429] * 2
        assert client.get(second.path).status_code == 200
        # The third by this address, beside the two that made the sessions.
        assert client.get("/callbacks/stats").status_code == 200
        answer = client.get("/callbacks/stats")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "4"
        assert client.get("/callbacks/health").status_code == 200
        assert client.get(f"/callbacks/sessions/{'0' * 32}").status_code == 429


# Deliveries.


def test_dead_letters_are_listed_and_delivered_again(app_of: AppOf) -> None:
    class Fickle(Transport):
        name = "fickle"
        retry = RetryPolicy(schedule=(), jitter=0.0)
        breaker = None
        fails = True

        async def send(self, delivery: Delivery) -> None:
            if self.fails:
                raise OSError("down")

    transport = Fickle()
    manager = CallbackManager(transports=[transport])
    with client_of(open_app(app_of, manager)) as client:
        session = made(client, delivery_method="fickle", retry_attempts=0)
        event = session.emit()
        letters = eventually(
            lambda: client.get(f"{session.path}/dead-letters").json()["dead_letters"]
        )
        assert letters[0]["events"] == [event]
        assert letters[0]["method"] == "fickle"
        assert letters[0]["is_due"] is False
        attempts = client.get(f"{session.path}/attempts").json()["attempts"]
        assert [each["number"] for each in attempts] == [1]
        assert "down" in attempts[0]["error"]
        page = client.get(f"{session.path}/dead-letters", params={"after": letters[0]["id"]})
        assert page.json()["dead_letters"] == []
        assert page.json()["cursor"] == letters[0]["id"]
        transport.fails = False
        redrive = f"{session.path}/dead-letters/redrive"
        assert client.post(redrive, json={"ids": ["no-such"]}).json()["redriven"] == 0
        answer = client.post(redrive, json={"ids": [letters[0]["id"]]})
        assert answer.json() == {"session_id": session.id, "redriven": 1}
        stats = eventually(
            lambda: delivered(client.get(f"{session.path}/stats").json()),
        )
        assert stats["events_failed"] == 0


def delivered(stats: dict[str, Any]) -> dict[str, Any] | None:
    return stats if stats["events_delivered"] else None


def eventually(ask: Any) -> Any:
    """Ask until there is an answer; each time the application gets to run."""
    for _ in range(2_000):
        if answer := ask():
            return answer
    raise AssertionError("it never came")


# Figures.


def test_figures_are_told(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        session.emit()
        stats = client.get(f"{session.path}/stats").json()
        assert (stats["session_id"], stats["events_sent"]) == (session.id, 1)
        stats = client.get("/callbacks/stats").json()
        assert (stats["total_sessions"], stats["total_events_sent"]) == (1, 1)
        assert isinstance(stats["buckets"], list)


def test_health_is_told_to_anybody(app_of: AppOf) -> None:
    class Away(MemoryStore):
        is_away = False

        async def health(self) -> None:
            if self.is_away:
                raise StoreUnavailableError("secret path /var/lib")

    store = Away()
    with client_of(app_of(CallbackManager(store))) as client:
        assert client.get("/callbacks/health").json() == {"status": "ok"}
        store.is_away = True
        answer = client.get("/callbacks/health")
        assert answer.status_code == 503
        assert "/var/lib" not in answer.text
        assert "retry-after" in answer.headers


def test_metrics_are_text_for_prometheus(app_of: AppOf) -> None:
    pytest.importorskip("prometheus_client")
    with client_of(open_app(app_of, CallbackManager())) as client:
        answer = client.get("/callbacks/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert "callbackkit_sessions" in answer.text


def test_metrics_name_the_extra_that_is_missing(app_of: AppOf, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "callbackkit.integrations.prometheus", raising=False)
    with client_of(open_app(app_of, CallbackManager())) as client:
        answer = client.get("/callbacks/metrics")
        assert answer.status_code == 501
        assert "callbackkit[prometheus]" in answer.json()["detail"]


# Streams.


async def test_an_event_stream_primes_and_follows(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        session = await manager.create_session()
        first = await session.progress(0.1)
        assert first is not None
        reading = Connection(open_app(app_of, manager), f"/callbacks/sessions/{session.id}/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading.run)
            await reading.until(lambda: len(reading.events) == 1)
            await session.progress(0.2)
            await reading.until(lambda: len(reading.events) == 2)
            await session.end()
            await reading.until_done()
        assert reading.status == 200
        assert reading.answered["content-type"].startswith("text/event-stream")
        assert "no-store" in reading.answered["cache-control"]
        assert "origin" in reading.answered["vary"].lower()
        events = [json.loads(event.data) for event in reading.events]
        assert [event["event_type"] for event in events] == ["progress"] * 2 + ["callbackkit.end"]
        assert {event.event for event in reading.events} <= {"", "message"}


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ("", None, [0, 1, 2]),
        ("", "", [0, 1, 2]),
        ("last_event_id=earliest", None, [0, 1, 2]),
        ("last_event_id={0}", None, [1, 2]),
        ("lastEventId={0}", None, [1, 2]),
        ("last-event-id={0}", None, [1, 2]),
        ("last_event_id={0}", "{1}", [2]),
        ("last_event_id=now", None, []),
        ("last_event_id=latest", None, []),
    ],
)
def test_a_stream_goes_on_where_its_client_was(
    app_of: AppOf, query: str, header: str | None, expected: list[int]
) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        ids = [session.emit(event_type="n", test_data={"n": n})["id"] for n in range(3)]
        session.end(manager)
        headers = {} if header is None else {"Last-Event-ID": header.format(*ids)}
        answer = client.get(f"{session.path}/sse?{query.format(*ids)}", headers=headers)
        assert answer.status_code == 200
        *events, end = [json.loads(e.data) for e in EventStreamReader().feed(answer.content)]
        assert [event["data"]["n"] for event in events] == expected
        assert end["event_type"] == "callbackkit.end"


def test_who_has_seen_all_of_an_ended_session_is_told_to_stop(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        session.emit()
        session.end(manager)
        events = EventStreamReader()
        events.feed(client.get(f"{session.path}/sse").content)
        last = {"Last-Event-ID": events.last_event_id}
        answer = client.get(f"{session.path}/sse", headers=last)
        assert (answer.status_code, answer.content) == (204, b"")
        answer = client.get(f"{session.path}/sse", headers={"Last-Event-ID": "foreign-1"})
        assert answer.status_code == 200
        assert b"callbackkit.gap" in answer.content


def test_a_session_that_ended_empty_ends_its_streams_too(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        session.end(manager)
        events = EventStreamReader()
        (end,) = events.feed(client.get(f"{session.path}/sse").content)
        assert json.loads(end.data)["event_type"] == "callbackkit.end"
        last = {"Last-Event-ID": events.last_event_id}
        assert client.get(f"{session.path}/sse", headers=last).status_code == 204


MIDDLEWARE = {
    "base": (BaseHTTPMiddleware, {"dispatch": lambda request, call_next: call_next(request)}),
    "gzip": (GZipMiddleware, {"minimum_size": 1}),
    "cors": (CORSMiddleware, {"allow_origins": ["*"]}),
}


@pytest.mark.parametrize("middleware", MIDDLEWARE.values(), ids=MIDDLEWARE)
async def test_a_stream_passes_the_middleware_of_the_application(
    app_of: AppOf, middleware: Any
) -> None:
    kind, options = middleware
    async with CallbackManager() as manager:
        app = open_app(app_of, manager)
        app.add_middleware(kind, **options)
        session = await manager.create_session()
        path = f"/callbacks/sessions/{session.id}/sse"
        reading = Connection(app, path, headers={"accept-encoding": "gzip"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading.run)
            for n in range(3):
                await session.emit("n", {"n": n})
                await reading.until(lambda n=n: len(reading.events) == n + 1)
            reading.left.set()
            await reading.until_done()
        assert "content-encoding" not in reading.answered
        assert not manager._readers.kinds(session.id)["sse"]


def test_a_stream_from_no_position_is_refused(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        answer = client.get(f"{session.path}/sse", headers={"Last-Event-ID": "no position"})
        assert answer.status_code == 422
        assert answer.json()["type"] == "callbackkit:position"
        assert answer.json()["field"] == "last_event_id"


def test_head_of_a_stream_does_not_stream(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        for path in (f"{made(client).path}/sse", "/callbacks/events/sse"):
            answer = client.head(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.content == b""


def test_too_many_readers_are_refused(app_of: AppOf) -> None:
    manager = CallbackManager(limits=Limits(max_readers=1))
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        with client.websocket_connect(f"{session.path}/ws"):
            answer = client.get(f"{session.path}/sse")
            assert answer.status_code == 429
            assert answer.json()["field"] == "max_readers"


def test_while_draining_streams_are_told_to_come_back(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        manager.begin_drain()
        for path in (f"{session.path}/sse", "/callbacks/events/sse"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.content.startswith(b"retry: ")
        assert client.get(f"{session.path}/events?wait=30").json()["events"] == []
        with client.websocket_connect(f"{session.path}/ws") as socket:
            assert socket.receive() == {
                "type": "websocket.close",
                "code": 1012,
                "reason": "come back",
            }


def test_a_browser_comes_back_to_a_store_that_is_away(app_of: AppOf) -> None:
    class Away(MemoryStore):
        is_away = False

        async def get_session(self, session_id: str) -> Any:
            if self.is_away:
                raise StoreUnavailableError("away")
            return await super().get_session(session_id)

    store = Away()
    with client_of(open_app(app_of, CallbackManager(store))) as client:
        session = made(client)
        store.is_away = True
        answer = client.get(f"{session.path}/sse", headers={"Accept": "text/event-stream"})
        assert (answer.status_code, answer.content[:7]) == (200, b"retry: ")
        answer = client.get(f"{session.path}/sse")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]


async def test_operators_follow_all_sessions(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        reading = Connection(open_app(app_of, manager), "/callbacks/events/sse")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading.run)
            await reading.until(lambda: len(reading.messages) > 1)
            for _ in range(2):
                session = await manager.create_session()
                await session.progress(0.5)
            await reading.until(lambda: len(reading.events) == 2)
            reading.left.set()
            await reading.until_done()
        sessions = {json.loads(event.data)["session_id"] for event in reading.events}
        assert len(sessions) == 2


def test_without_a_running_manager_operators_are_told(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        pass
    # Its lifespan has ended.
    answer = type(client)(client.app).get("/callbacks/events/sse")
    assert answer.status_code == 503


# WebSockets.


def test_a_websocket_gets_events_and_hears_its_client(app_of: AppOf) -> None:
    manager = CallbackManager()
    heard: list[Event] = []
    manager.register_callback("client.message", heard.append)
    with client_of(open_app(app_of, manager)) as client:
        session = made(client)
        first = session.emit()
        with client.websocket_connect(f"{session.path}/ws") as socket:
            assert socket.receive_json() == first
            socket.send_json({"stop": True})
            said = socket.receive_json()
            assert (said["event_type"], said["data"]) == ("client.message", {"stop": True})
            session.end(manager)
            assert socket.receive_json()["event_type"] == "callbackkit.end"
            assert socket.receive()["code"] == 1000
        assert [event.data for event in heard] == [{"stop": True}]
        with client.websocket_connect(f"{session.path}/ws?after={first['id']}") as socket:
            assert socket.receive_json() == said


def test_a_websocket_that_is_refused_is_told_why(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), lambda _, session: session is None or None)) as client:
        session = made(client)
        cases = {
            f"{session.path}/ws": 401,
            f"/callbacks/sessions/{'0' * 32}/ws": 404,
        }
        for path, status in cases.items():
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(path),
            ):
                raise AssertionError("it was let in")
            assert refused.value.status_code == refused.value.json()["status"] == status
            assert refused.value.headers["content-type"] == "application/problem+json"
        path = f"{session.path}/ws?after=nonsense"
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            client.websocket_connect(path, headers=session.headers),
        ):
            raise AssertionError("it was let in")
        assert refused.value.status_code == 422
        assert refused.value.json()["field"] == "after"


def test_the_path_of_a_websocket_tells_other_clients(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        answer = client.get(f"{made(client).path}/ws")
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"


# What is not there.


def test_other_methods_and_paths_are_problems(app_of: AppOf) -> None:
    with client_of(open_app(app_of, CallbackManager())) as client:
        session = made(client)
        answer = client.put(session.path, content=b"x")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.request("TRACE", "/callbacks/stats").status_code == 405
        for path in ("/callbacks/nothing", f"{session.path}/nothing", "/callbacks/"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


def test_an_error_of_the_application_is_the_frameworks(app_of: AppOf) -> None:
    def broken(*_: object) -> bool:
        raise ZeroDivisionError

    with (
        client_of(app_of(CallbackManager(), broken)) as client,
        pytest.raises(ZeroDivisionError),
    ):
        client.get("/callbacks/stats")
    with client_of(app_of(CallbackManager(), broken), raise_server_exceptions=False) as client:
        assert client.get("/callbacks/stats").status_code == 500


# Under a real server.


@pytest.mark.real_server
def test_a_body_of_ten_megabytes_is_refused_by_a_real_server(app_of: AppOf) -> None:
    with serving(open_app(app_of, CallbackManager())) as port:
        url = f"http://127.0.0.1:{port}/callbacks/sessions"
        headers = {"Content-Type": "application/json"}
        answer = httpx2.post(url, content=b"x" * 10_485_760, headers=headers, timeout=PATIENCE)
        assert answer.status_code == 413


@pytest.mark.real_server
def test_a_stream_and_a_websocket_share_a_real_server(app_of: AppOf) -> None:
    with serving(open_app(app_of, CallbackManager())) as port:
        url = f"http://127.0.0.1:{port}/callbacks/sessions"
        with httpx2.Client(timeout=PATIENCE) as client, ThreadPoolExecutor(2) as pool:
            created = client.post(url, json={}).json()
            path = f"{url}/{created['session_id']}"

            def read() -> list[int]:
                found: list[int] = []
                reader = EventStreamReader()
                with client.stream("GET", f"{path}/sse") as answer:
                    for chunk in answer.iter_bytes():
                        found += [json.loads(e.data)["data"]["n"] for e in reader.feed(chunk)]
                        if len(found) == 20:
                            break
                return found

            readers = [pool.submit(read) for _ in range(2)]
            for n in range(20):
                client.post(f"{path}/test", json={"event_type": "n", "test_data": {"n": n}})
            for reader in readers:
                assert reader.result(PATIENCE) == list(range(20))


async def test_a_position_is_bound_to_its_session(app_of: AppOf) -> None:
    """One of the future gives a gap, not a wait for what may come."""
    async with CallbackManager() as manager:
        session = await manager.create_session()
        event = await session.progress(0.5)
        assert event is not None
        future = Position(event.position.epoch, 99)
        path = f"/callbacks/sessions/{session.id}/events"
        polling = Connection(open_app(app_of, manager), path, query=f"after={future}&wait=30")
        with anyio.fail_after(PATIENCE):
            await polling.run()
        assert json.loads(polling.body)["gap"] is True
