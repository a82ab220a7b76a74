"""The OpenAPI document: complete, valid, and true by schemathesis."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import pytest
import schemathesis
from jsonschema_rs import Draft202012Validator
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)
from starlette.testclient import TestClient

from callbackkit import (
    CallbackManager,
    Delivery,
    Limits,
    MemoryStore,
    Session,
    Store,
    Transport,
)
from callbackkit.http.openapi import document_of, operations_of
from callbackkit.http.problems import PROBLEM_JSON
from callbackkit.http.table import ROUTES
from callbackkit.stores.sqlite import SQLiteStore
from tests.http.rig import AppOf, client_of, fastapi_app, in_both, made, starlette_app

METHODS = ["polling", "sse", "websocket"]


# By itself.


def test_every_route_is_described_with_its_problems() -> None:
    document = document_of(METHODS, prefix="/callbacks")
    for route in ROUTES:
        operation = document["paths"]["/callbacks" + route.path][route.method.lower()]
        answers = operation["responses"]
        assert {"403", "429", "503"} <= set(answers)
        assert ("401" in answers) == (route.needs == "session")
        for status, answer in answers.items():
            if int(status) >= 400:
                assert list(answer["content"]) == [PROBLEM_JSON]
            assert answer["description"]


def test_operations_are_complete_in_themselves() -> None:
    operations = operations_of(METHODS)
    assert operations.keys() == {route.name for route in ROUTES}
    assert "$ref" not in json.dumps(operations)


def test_what_is_referred_to_is_there() -> None:
    document = document_of(METHODS, prefix="")
    schemas = document["components"]["schemas"]
    for text in json.dumps(document).split('"$ref": "')[1:]:
        assert text.partition('"')[0].removeprefix("#/components/schemas/") in schemas


def test_schemas_are_those_of_the_classes() -> None:
    schemas = document_of([*METHODS, "webhook"], prefix="")["components"]["schemas"]
    assert set(schemas["SessionStats"]["required"]) == set(schemas["SessionStats"]["properties"])
    methods, null = schemas["CallbackConfig"]["properties"]["delivery_method"]["anyOf"]
    assert methods["enum"] == sorted([*METHODS, "webhook"])
    assert null == {"type": "null"}
    assert "anyOf" not in schemas["CallbackConfig"]
    assert schemas["ConfigChanges"]["properties"].keys() == {"events", "webhook_url", "headers"}
    assert schemas["EventShown"]["properties"]["timestamp"]["format"] == "date-time"


def test_a_starlette_application_serves_its_document() -> None:
    with client_of(starlette_app(CallbackManager(), prefix="/x")) as client:
        answer = client.get("/openapi.json")
        assert answer.json() == json.loads(json.dumps(document_of(METHODS, prefix="/x")))


def test_fastapi_shows_every_route() -> None:
    app = fastapi_app(CallbackManager())
    shown = app.openapi()["paths"]
    described = operations_of(METHODS)
    count = 0
    for route in ROUTES:
        operation = shown["/callbacks" + route.path][route.method.lower()]
        # It leaves nulls out, which are defaults here.
        wanted = without_nulls(described[route.name])
        assert operation["responses"] == wanted["responses"]
        assert operation.get("parameters", []) == wanted["parameters"]
        assert operation.get("requestBody") == wanted.get("requestBody")
        assert operation["tags"] == ["callbacks"]
        count += 1
    assert sum(len(methods) for methods in shown.values()) == count


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


# What is answered is what is described.


@in_both
def test_answers_fit_their_schemas(app_of: AppOf) -> None:
    """Each answer that works, and one problem of each kind."""
    manager = CallbackManager(transports=[Sink()])
    operations = operations_of([*METHODS, "sink"])
    with client_of(app_of(manager, lambda *_: True)) as client:
        session = made(client, delivery_method="sink", webhook_secret=SECRET)
        session.emit()
        for route in ROUTES:
            if route.name in {"stream_events", "stream_all_events", "delete_session"}:
                continue
            path = "/callbacks" + route.path.format(session_id=session.id)
            answer = client.request(route.method, path)
            assert answer.is_success or route.name == "open_websocket"
            described = operations[route.name]["responses"][str(answer.status_code)]
            (media, content), *_ = described["content"].items()
            assert answer.headers["content-type"].partition(";")[0] == media
            if "json" in media:
                check_schema(content["schema"], answer.json())
        check_schema(
            operations["get_session"]["responses"]["404"]["content"][PROBLEM_JSON]["schema"],
            client.get("/callbacks/sessions/x").json(),
        )


def check_schema(schema: dict[str, Any], value: object) -> None:
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
    assert errors == []


# Schemathesis.

SECRET = "whsec_" + "A" * 32


class Sink(Transport):
    """Takes everything."""

    name = "sink"

    async def send(self, delivery: Delivery) -> None:
        """Be done with it."""


@attrs.frozen
class Room:
    """Sessions for whoever asks anything."""

    client: TestClient
    active: Session
    ended: Session

    def headers(self, case: schemathesis.Case) -> dict[str, str]:
        """Ask about a session there is, and wait for nothing; return what its client sends."""
        wait = str(case.query.get("wait", ""))
        if re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", wait) and float(wait) <= 30:
            case.query["wait"] = 0
        if re.fullmatch(r"[\w.]+-\d+", str(case.query.get("before"))):
            # Nothing is cleared up to a position of another session.
            case.query["before"] = str(self.active._record.position)
        if not re.fullmatch("[0-9a-f]{32}", str(case.path_parameters.get("session_id"))):
            return {}
        session_id, token = self.session_for(case)
        case.path_parameters["session_id"] = session_id
        return {"Authorization": f"Bearer {token}"}

    def session_for(self, case: schemathesis.Case) -> tuple[str, str | None]:
        if case.path.endswith("/sse"):
            # A stream of an active session does not end.
            return self.ended.id, self.ended.token
        if case.method == "DELETE" and case.path.endswith("{session_id}"):
            session = made(self.client)
            return session.id, session.token
        return self.active.id, self.active.token


def is_told_twice(body: Any) -> bool:
    """A header that comes twice is refused, which a schema can't say."""
    headers = body.get("headers") if isinstance(body, dict) else None
    names = list(headers) if isinstance(headers, dict) else []
    return len({name.lower() for name in names}) != len(names)


POSITIVE = schemathesis.GenerationMode.POSITIVE
NEGATIVE = schemathesis.GenerationMode.NEGATIVE


@contextmanager
def furnished(client: TestClient, manager: CallbackManager) -> Generator[Room]:
    portal = client.portal
    assert portal is not None
    config = {"delivery_method": "sink", "webhook_secret": SECRET}
    active = portal.call(manager.create_session, config)
    ended = portal.call(manager.create_session)
    for session in (active, ended):
        for n in range(3):
            portal.call(session.emit, "n", {"n": n})
    portal.call(ended.end)
    yield Room(client, active, ended)


def let_in_operators(connection: Any, session: Session | None) -> bool | None:
    """All but those whose answer would not end; clients have their tokens."""
    if session is not None:
        return None
    return not connection.url.path.endswith("/events/sse")


@in_both
def test_schemathesis_finds_nothing(app_of: AppOf) -> None:
    look_for_faults(app_of, MemoryStore(), examples=8)


@pytest.mark.torture
@pytest.mark.timeout(900)
@in_both
def test_schemathesis_finds_nothing_for_long(app_of: AppOf, tmp_path: Path) -> None:
    look_for_faults(app_of, SQLiteStore(tmp_path / "events.db"), examples=150)


def look_for_faults(app_of: AppOf, store: Store, examples: int) -> None:
    limits = Limits(max_requests=1_000_000, max_sessions=1_000_000)
    manager = CallbackManager(store, [Sink()], limits=limits)
    app = app_of(manager, let_in_operators)
    with client_of(app) as client, furnished(client, manager) as room:
        found = schemathesis.openapi.from_asgi("/openapi.json", app)
        operations = [result.ok() for result in found.get_all_operations()]
        assert len(operations) == len(ROUTES)
        for operation in operations:
            check_operation(operation, POSITIVE, room, examples)
            if operation.body or operation.query or operation.path_parameters:
                check_operation(operation, NEGATIVE, room, examples)


def check_operation(
    operation: Any, mode: schemathesis.GenerationMode, room: Room, examples: int
) -> None:
    excluded: list[Any] = []
    if operation.method.upper() == "DELETE":
        # Asked again without a token, a session that was deleted is gone.
        excluded = [ignored_auth]
    elif operation.path.endswith("/ws"):
        # Whatever is asked, the answer is to ask by WebSocket.
        excluded = [positive_data_acceptance, negative_data_rejection]

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        hypothesis.assume(not is_told_twice(case.body))
        case.call_and_validate(headers=room.headers(case), excluded_checks=excluded)

    ask()
