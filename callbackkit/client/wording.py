"""What an event says in one line of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from callbackkit.errors import PayloadError
from callbackkit.events import GAP, Event, EventType, check_payload

__all__ = ["Wording", "word"]


@attrs.frozen
class Wording:
    """An event in words, as they came: neither printable nor cut.

    Attributes:
        label: What the line begins with.
        text: The rest of it; may have line feeds.
        colour: Name of the colour of the label.
        is_loud: The text has that colour too.
    """

    label: str
    text: str
    colour: str = ""
    is_loud: bool = False


def word(event: Event) -> Wording:
    """Say what an event says.

    Whoever sends it decides what is in it: data that is not what the type asks for is shown as
    that of an unknown type is.
    """
    data = event.data
    say = _WORDINGS.get(event.event_type, _unknown)
    try:
        if say is not _unknown:
            check_payload(event.event_type, data)
        wording = say(event.event_type, data)
    except (PayloadError, _StrangeError):
        wording = _unknown(event.event_type, data)
    if event.metadata.get("test") is True:
        return attrs.evolve(wording, text=f"{wording.text} (test)")
    return wording


class _StrangeError(Exception):
    """The data of an event of ours is not what we write."""


Data = Mapping[str, Any]
_Say = Callable[[str, Data], Wording]


def _thinking(_name: str, data: Data) -> Wording:
    return Wording("thinking", data["thought"] + _more(data, "thought"), "magenta")


def _tool_use(_name: str, data: Data) -> Wording:
    given = _pairs(data.get("parameters") or {})
    text = f"{data['tool_name']}({given}){_more(data, 'tool_name', 'parameters')}"
    return Wording("tool_use", text, "cyan")


def _tool_result(_name: str, data: Data) -> Wording:
    has_failed = data.get("success") is False
    text = data["tool_name"] + (" failed" if has_failed else "")
    if data.get("execution_time") is not None:
        text += f" {'after' if has_failed else 'in'} {_seconds(data['execution_time'])}"
    if data.get("result") is not None:
        text += f": {_value(data['result'])}"
    text += _more(data, "tool_name", "success", "execution_time", "result")
    return Wording("tool_result", text, "red" if has_failed else "green")


def _progress(_name: str, data: Data) -> Wording:
    """Say what stands behind the bar."""
    step, steps = data.get("current_step"), data.get("total_steps")
    parts = [
        "" if step is None else f"({step})" if steps is None else f"({step}/{steps})",
        data.get("message") or "",
        _more(data, "progress", "current_step", "total_steps", "message").strip(),
    ]
    return Wording("progress", " ".join(filter(None, parts)), "blue")


def _completion(_name: str, data: Data) -> Wording:
    text, colour = _outcome(data)
    if data.get("tokens_used") is not None:
        text += f", {data['tokens_used']} tokens"
    if data.get("result") is not None:
        text += f": {_value(data['result'])}"
    text += _more(data, "success", "total_time", "tokens_used", "result")
    return Wording("completion", text, colour)


def _workflow_start(_name: str, data: Data) -> Wording:
    text = f"{data['workflow']} begins"
    if data.get("steps"):
        text += f": {', '.join(data['steps'])}"
    return Wording("workflow", text + _more(data, "workflow", "steps"), "yellow")


def _workflow_step(_name: str, data: Data) -> Wording:
    index, total = data.get("index"), data.get("total")
    parts = [
        "" if index is None else f"({index})" if total is None else f"({index}/{total})",
        data["step"],
        data.get("status") or "",
    ]
    text = " ".join(filter(None, parts))
    return Wording("step", text + _more(data, "step", "index", "total", "status"), "yellow")


def _workflow_complete(_name: str, data: Data) -> Wording:
    text, colour = _outcome(data)
    text = f"{data['workflow']} {text}{_more(data, 'workflow', 'success', 'total_time')}"
    return Wording("workflow", text, "yellow" if colour == "green" else colour)


def _model_selection(_name: str, data: Data) -> Wording:
    text: str = data["model"]
    if data.get("candidates"):
        text += f" of {', '.join(data['candidates'])}"
    if data.get("reason"):
        text += f": {data['reason']}"
    return Wording("model", text + _more(data, "model", "reason", "candidates"), "magenta")


def _error(_name: str, data: Data) -> Wording:
    text = data["error"]
    if data.get("error_type"):
        text = f"{data['error_type']}: {text}"
    notes = [
        {True: "can be retried", False: "final", None: ""}[data.get("recoverable")],
        "" if data.get("retry_count") is None else f"retry {data['retry_count']}",
    ]
    if any(notes):
        text += f" ({', '.join(filter(None, notes))})"
    text += _more(data, "error", "error_type", "recoverable", "retry_count")
    return Wording("error", text, "red", is_loud=True)


def _gap(_name: str, data: Data) -> Wording:
    missed, first, last = data.get("missed"), data.get("from"), data.get("to")
    if not isinstance(first, str) or not isinstance(last, str):
        raise _StrangeError
    if isinstance(missed, int) and missed == 1:
        text = f"1 event is missing, no longer kept: {last}"
    elif isinstance(missed, int):
        text = f"{missed} events are missing, no longer kept: {first} to {last}"
    else:
        text = f"events are missing, nobody knows how many: between {first} and {last}"
    return Wording("!!! GAP !!!", text, "loud", is_loud=True)


def _unknown(name: str, data: Data) -> Wording:
    return Wording(name, _pairs(data))


_WORDINGS: Final[Mapping[str, _Say]] = {
    EventType.THINKING: _thinking,
    EventType.TOOL_USE: _tool_use,
    EventType.TOOL_RESULT: _tool_result,
    EventType.PROGRESS: _progress,
    EventType.COMPLETION: _completion,
    EventType.WORKFLOW_START: _workflow_start,
    EventType.WORKFLOW_STEP: _workflow_step,
    EventType.WORKFLOW_COMPLETE: _workflow_complete,
    EventType.MODEL_SELECTION: _model_selection,
    EventType.ERROR: _error,
    GAP: _gap,
}


def _outcome(data: Data) -> tuple[str, str]:
    has_failed = data.get("success") is False
    text = "failed" if has_failed else "done"
    if data.get("total_time") is not None:
        text += f" {'after' if has_failed else 'in'} {_seconds(data['total_time'])}"
    return text, "red" if has_failed else "green"


def _seconds(value: float) -> str:
    # A whole number may have more digits than a float has room for.
    return f"{value:.2f} s" if value < 1e6 else "ages"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pairs(data: Data) -> str:
    return ", ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in data.items()
    )


def _more(data: Data, *known: str) -> str:
    """Say the keys that the type does not know, which applications may add."""
    rest = _pairs({key: value for key, value in data.items() if key not in known})
    return f" [{rest}]" if rest else ""
