"""Problem documents: each error has its status, and says no more than it should."""

import json

import pytest
from starlette.exceptions import HTTPException

from callbackkit import (
    CallbackKitError,
    ConfigError,
    IdempotencyError,
    LimitError,
    PayloadError,
    PositionError,
    SessionDeletedError,
    SessionEndedError,
    StoreError,
    StoreUnavailableError,
    StreamClosedError,
    UnknownSessionError,
    WireError,
)
from callbackkit.http.problems import Problem, UnsuitedSessionError, problem_of

STATUSES = {
    ConfigError("batching.max_events", "must be 1 or more"): 422,
    PayloadError("steps[1]", "must be a string"): 422,
    PositionError("no position"): 422,
    WireError("no JSON"): 400,
    IdempotencyError("again"): 409,
    SessionEndedError("s"): 409,
    UnsuitedSessionError("it has no endpoint"): 409,
    SessionDeletedError("s"): 410,
    UnknownSessionError("s"): 404,
    LimitError("max_event_bytes", 5): 413,
    LimitError("max_body_bytes", 5): 413,
    LimitError("max_sessions", 5): 429,
    LimitError("max_readers", 5): 429,
    LimitError("max_requests", 5): 429,
    StoreError("x"): 503,
    StoreUnavailableError("x"): 503,
    HTTPException(401, "who?", {"WWW-Authenticate": "Bearer"}): 401,
}


@pytest.mark.parametrize("error", STATUSES, ids=repr)
def test_each_error_has_its_status(error: Exception) -> None:
    problem = problem_of(error)
    assert problem is not None
    response = problem.response()
    document = json.loads(bytes(response.body))
    assert response.status_code == document["status"] == STATUSES[error]
    assert response.headers["content-type"] == "application/problem+json"
    assert document["type"]
    assert document["title"]
    assert document["detail"]


def test_field_and_reason_are_named() -> None:
    document = problem_document(ConfigError("batching.max_events", "must be 1 or more"))
    assert (document["field"], document["reason"]) == ("batching.max_events", "must be 1 or more")
    document = problem_document(PayloadError("", "must be a mapping"))
    assert "field" not in document
    assert document["reason"] == "must be a mapping"
    document = problem_document(LimitError("max_sessions", 5))
    assert document["field"] == "max_sessions"
    assert "reason" not in document


def problem_document(error: Exception) -> dict[str, object]:
    problem = problem_of(error)
    assert problem is not None
    return problem.document()


def test_what_comes_later_says_when() -> None:
    assert retry_after(LimitError("max_sessions", 5)) == "5"
    assert retry_after(StoreError("x")) == "5"
    # As long as it takes until another one is let in.
    assert retry_after(LimitError("max_requests", 1)) == "10"
    assert retry_after(LimitError("max_requests", 1_000)) == "1"
    assert retry_after(LimitError("max_event_bytes", 5)) is None


def retry_after(error: Exception) -> str | None:
    problem = problem_of(error)
    assert problem is not None
    return problem.headers.get("Retry-After")


def test_a_store_that_fails_keeps_its_reason_to_itself() -> None:
    problem = problem_of(StoreError("unable to open /var/lib/secret.db"))
    assert problem is not None
    assert "secret" not in json.dumps(problem.document())


def test_headers_of_a_refusal_are_kept() -> None:
    problem = problem_of(HTTPException(401, "who?", {"WWW-Authenticate": "Bearer"}))
    assert problem is not None
    assert problem.response().headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("error", [ZeroDivisionError(), StreamClosedError(), CallbackKitError()])
def test_another_error_is_nobodys_outside(error: Exception) -> None:
    assert problem_of(error) is None


def test_a_status_without_a_name_is_an_error() -> None:
    assert Problem(status=499).document() == {
        "type": "about:blank",
        "title": "Error",
        "status": 499,
    }


def test_whatever_a_detail_holds_can_be_sent() -> None:
    body = Problem(status=422, detail="half \ud800 a pair").response().body
    assert json.loads(bytes(body))["detail"] == "half \ud800 a pair"
