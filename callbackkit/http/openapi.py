"""The API as OpenAPI 3.1: every route, with all its answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Final, cast

import attrs
import msgspec

from callbackkit.http import schemas
from callbackkit.http.problems import PROBLEM_JSON
from callbackkit.http.table import ROUTES, Route
from callbackkit.sessions.config import CallbackConfig
from callbackkit.transports.polling import MOST_EVENTS, MOST_WAIT

__all__ = ["Document", "document_of", "operations_of"]

Document = dict[str, Any]

# Of the API, which is not that of the package.
_VERSION: Final = "1"
JSON: Final = "application/json"
_EVENT_STREAM: Final = "text/event-stream"
_REF: Final = "#/components/schemas/"

# One event of a stream, not the stream: until OpenAPI 3.2 there are no other words for it.
_SENT: Final[Document] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"{_REF}EventShown"},
        },
    },
}

# As the session reads them, see callbackkit.events and callbackkit.wire.envelope.
_POSITION: Final = "[A-Za-z0-9_.]{1,32}-(0|[1-9][0-9]{0,17})"
_PLACE: Final = f"^({_POSITION}|earliest|latest|now)?$"
_TIMESTAMP: Final = (
    "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    "T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?Z"
)
_EVENT_TYPE: Final = "[a-z0-9_-]+(\\.[a-z0-9_-]+)*"
# What has at most 128 characters, as in a list nothing else can say that.
_SHORT: Final = "[a-z0-9_-]{1,64}(\\.[a-z0-9_-]{1,20}){0,3}"
_URL: Final = "^https?://[a-z0-9-]+(\\.[a-z0-9-]+)*(:[1-9][0-9]{0,3})?(/[A-Za-z0-9/_.-]*)?$"

# RFC 9110, section 5.6.2.
_TOKEN: Final = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"


@attrs.frozen
class _Parameter:
    """A parameter of a query, or a header."""

    name: str
    schema: Document
    about: str
    place: str = "query"
    required: bool = False

    def document(self) -> Document:
        return {
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.about,
            "schema": dict(self.schema),
        }


def _text(pattern: str) -> Document:
    return {"type": "string", "pattern": pattern}


_ID: Final = _Parameter(
    "session_id", _text("^[0-9a-f]{32}$"), "The session.", place="path", required=True
)
_AFTER: Final = _Parameter(
    "after", _text(_PLACE), "A position, exclusive; earliest, or now; by default the oldest."
)
_LIMIT: Final = _Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MOST_EVENTS, "default": 100},
    "Most of them.",
)
_LETTER: Final = _Parameter("after", {"type": "string"}, "The cursor of the page before.")
_RESUME: Final = (
    _Parameter("Last-Event-ID", _text(_PLACE), "The position seen last.", place="header"),
    _Parameter("last_event_id", _text(_PLACE), "The same, where no header can be set."),
)


@attrs.frozen(kw_only=True)
class _Operation:
    """What is told of a route.

    Attributes:
        summary: What it does.
        status: When it works.
        answer: The name of the schema of the answer, or its media type; nothing for none.
        more: Other answers that are no errors, and what they mean.
        takes: The name of the schema of the body.
        parameters: Without the session.
        problems: Statuses of errors, beside those of every route.
    """

    summary: str
    status: int = 200
    answer: str = ""
    more: Mapping[int, str] = attrs.field(factory=dict[int, str])
    takes: str = ""
    parameters: tuple[_Parameter, ...] = ()
    problems: tuple[int, ...] = ()


_OPERATIONS: Final[Mapping[str, _Operation]] = {
    "create_session": _Operation(
        summary="Create a session",
        status=201,
        answer="SessionCreated",
        takes="CallbackConfig",
    ),
    "list_sessions": _Operation(
        summary="List sessions",
        answer="SessionPage",
        parameters=(
            _Parameter(
                "state", {"type": "string", "enum": ["active", "ended"]}, "Only those in a state."
            ),
            _LETTER,
            _LIMIT,
        ),
        problems=(422,),
    ),
    "get_session": _Operation(summary="Show a session", answer="SessionShown"),
    "update_session": _Operation(
        summary="Change the events, URL or headers of a session",
        answer="SessionShown",
        takes="ConfigChanges",
        problems=(409,),
    ),
    "rotate_secret": _Operation(
        summary="Give a session another webhook secret",
        answer="Rotated",
        takes="RotateRequest",
        problems=(409,),
    ),
    "get_endpoint": _Operation(
        summary="How the endpoint of a session does", answer="EndpointShown", problems=(409,)
    ),
    "delete_session": _Operation(summary="Delete a session, with its events", status=204),
    "get_events": _Operation(
        summary="Read events, or wait for them",
        answer="EventPage",
        parameters=(
            _AFTER,
            _Parameter(
                "since",
                _text(f"^({_TIMESTAMP}|null|undefined)?$"),
                "A timestamp, exclusive; a position is better.",
            ),
            _LIMIT,
            _Parameter(
                "wait",
                {"type": "number", "minimum": 0, "maximum": MOST_WAIT, "default": 0},
                "Seconds to wait if there is none.",
            ),
            _Parameter(
                "types", _text(f"^({_SHORT}(,{_SHORT}){{0,255}})?$"), "Event types, with commas."
            ),
        ),
        problems=(422,),
    ),
    "clear_events": _Operation(
        summary="Drop old events",
        answer="Cleared",
        parameters=(
            _Parameter(
                "before",
                _text(f"^({_POSITION}|{_TIMESTAMP})$"),
                "A timestamp or position, exclusive; by default all are dropped.",
            ),
        ),
        problems=(409, 422),
    ),
    "stream_events": _Operation(
        summary="Follow a session by server-sent events",
        answer=_EVENT_STREAM,
        more={204: "There is nothing more to come."},
        parameters=_RESUME,
        problems=(422,),
    ),
    "open_websocket": _Operation(
        summary="Follow a session by WebSocket",
        status=101,
        parameters=(_AFTER,),
        problems=(422, 426),
    ),
    "emit_test_event": _Operation(
        summary="Emit a test event",
        answer="SampleResult",
        takes="SampleRequest",
        problems=(409,),
    ),
    "get_session_stats": _Operation(summary="Figures of a session", answer="SessionStats"),
    "list_dead_letters": _Operation(
        summary="What could not be delivered",
        answer="DeadLetters",
        parameters=(_LETTER, _LIMIT),
        problems=(422,),
    ),
    "redrive_dead_letters": _Operation(
        summary="Deliver dead letters again",
        answer="Redriven",
        takes="RedriveRequest",
    ),
    "list_attempts": _Operation(summary="The last attempts to deliver", answer="Attempts"),
    "get_stats": _Operation(summary="Figures of all sessions", answer="StatsShown"),
    "stream_all_events": _Operation(
        summary="Follow all sessions, for operators", answer=_EVENT_STREAM
    ),
    "get_health": _Operation(summary="Whether the store can be reached", answer="Health"),
    "get_metrics": _Operation(
        summary="Figures for Prometheus", answer="text/plain", problems=(501,)
    ),
}

_STATUSES: Final[Mapping[int, str]] = {
    101: "The connection is a WebSocket from here on.",
    200: "As asked.",
    201: "Created.",
    204: "Done.",
    400: "The body is not JSON in UTF-8, or does not say so.",
    401: "The token of the session is missing or wrong.",
    403: "Not allowed.",
    404: "There is no such session.",
    409: "The session has ended, or is not one that can have this.",
    410: "The session was deleted.",
    413: "Too large.",
    422: "Something given can't be had; the problem names it.",
    426: "This is for WebSockets.",
    429: "A limit is reached; Retry-After tells when to try again.",
    501: "An optional package is not installed.",
    503: "The store can't be reached.",
}


def operations_of(methods: Collection[str]) -> dict[str, Document]:
    """Return what OpenAPI says of each route, by its name, complete in itself.

    Args:
        methods: The delivery methods that can be had.
    """
    known = _components(methods)
    return {route.name: _resolved(_operation(route), known) for route in ROUTES}


def document_of(methods: Collection[str], *, prefix: str) -> Document:
    """Return the whole document.

    Args:
        methods: The delivery methods that can be had.
        prefix: Before every path.
    """
    paths: Document = {}
    for route in ROUTES:
        operation = _operation(route)
        if route.needs == "session":
            operation["security"] = [{"token": []}, {"cookie": []}]
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "callbackkit", "version": _VERSION},
        "paths": paths,
        "components": {
            "schemas": _components(methods),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "callbackkit_session"},
            },
        },
    }


def _operation(route: Route) -> Document:
    told = _OPERATIONS[route.name]
    parameters = ((_ID,) if route.needs == "session" else ()) + told.parameters
    operation: Document = {
        "summary": told.summary,
        "operationId": f"callbackkit_{route.name}",
        "tags": ["callbacks"],
        "parameters": [each.document() for each in parameters],
        "responses": _responses(route, told),
    }
    if told.takes:
        schema = {"$ref": f"{_REF}{told.takes}"}
        operation["requestBody"] = {"required": False, "content": {JSON: {"schema": schema}}}
    return operation


def _responses(route: Route, told: _Operation) -> Document:
    answer: Document = {"description": _STATUSES[told.status]}
    if told.answer == _EVENT_STREAM:
        answer["content"] = {_EVENT_STREAM: {"schema": _SENT}}
    elif "/" in told.answer:
        answer["content"] = {told.answer: {"schema": {"type": "string"}}}
    elif told.answer:
        answer["content"] = {JSON: {"schema": {"$ref": f"{_REF}{told.answer}"}}}
    found: Document = {str(told.status): answer}
    found |= {str(status): {"description": text} for status, text in told.more.items()}
    for status in _problems(route, told):
        found[str(status)] = {
            "description": _STATUSES[status],
            "content": {PROBLEM_JSON: {"schema": {"$ref": f"{_REF}Problem"}}},
        }
    return found


def _problems(route: Route, told: _Operation) -> list[int]:
    found = {403, 429, 503, *told.problems}
    if route.needs == "session":
        found |= {401, 404, 410}
    if told.takes:
        found |= {400, 413, 422}
    return sorted(found)


# Schemas.


def _components(methods: Collection[str]) -> Document:
    """Return all schemas by name, made by msgspec of the classes themselves."""
    types = [getattr(schemas, name) for name in schemas.__all__]
    _, made = msgspec.json.schema_components(types, ref_template=f"{_REF}{{name}}")
    components = cast("dict[str, Document]", made)
    for schema in components.values():
        # The first paragraph; attributes are told by the properties.
        schema["description"] = schema.get("description", "").split("\n\n")[0]
    components["CallbackConfig"] = _config(methods)
    changes = components["ConfigChanges"]
    config = components["CallbackConfig"]["properties"]
    changes["properties"] = {name: config[name] for name in changes["properties"]}
    for name in ("ConfigChanges", "SampleRequest", "RedriveRequest", "RotateRequest"):
        components[name]["additionalProperties"] = False
    rotation = components["RotateRequest"]["properties"]
    rotation["webhook_secret"] = config["webhook_secret"]
    rotation["overlap"] |= {"minimum": 0, "maximum": 604_800}
    components["SampleRequest"]["properties"]["event_type"] |= _text(f"^{_EVENT_TYPE}$")
    components["SampleRequest"]["properties"]["event_type"]["maxLength"] = 128
    return components


def _config(methods: Collection[str]) -> Document:
    """Return what a client may ask for, as narrow as it can be said."""
    schema: Document = deepcopy(CallbackConfig.__get_pydantic_json_schema__(None, None))
    found: Document = schema["properties"]
    found["delivery_method"]["enum"] = sorted(methods)
    _inside(found["webhook_url"])["pattern"] = _URL
    _inside(found["webhook_secret"])["pattern"] = "^whsec_([A-Za-z0-9+/]{4}){8,21}$"
    # One that comes again does not count.
    del _inside(found["events"])["maxItems"]
    _inside(found["events"])["items"] |= {"pattern": f"^{_EVENT_TYPE}$", "maxLength": 128}
    found["headers"]["propertyNames"] = _text(_TOKEN)
    found["headers"]["additionalProperties"]["pattern"] = "^([!-~]([ -~]*[!-~])?)?$"
    batching = _inside(found["batching"])["properties"]
    batching["max_events"]["maximum"] = 10_000
    batching["max_delay"]["maximum"] = 3_600
    for properties in (found, batching):
        for name, each in properties.items():
            # Whatever is null is left out.
            properties[name] = each if "anyOf" in each else {"anyOf": [each, {"type": "null"}]}
    if "webhook" not in methods:
        # With a URL it would be the method.
        method = {"properties": {"delivery_method": {"type": "string"}}}
        schema["anyOf"] = [
            {"properties": {"webhook_url": {"type": "null"}}},
            {"required": ["delivery_method"], **method},
        ]
    return schema


def _inside(schema: Document) -> Document:
    """Return what stands beside null."""
    inside: Document = schema["anyOf"][0]
    return inside


def _resolved(value: object, known: Mapping[str, Any]) -> Any:
    """Return a schema with what it refers to put in: none of them refers to itself."""
    if isinstance(value, list):
        return [_resolved(each, known) for each in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    content = cast("Document", value)
    if "$ref" in content:
        return _resolved(known[content["$ref"].removeprefix(_REF)], known)
    return {key: _resolved(each, known) for key, each in content.items()}
