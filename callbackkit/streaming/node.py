"""A function made a step of a graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, Final, Self, cast, overload

from callbackkit.dispatch.callables import callable_name, short_repr
from callbackkit.errors import NodeInputError, NodeOutputError
from callbackkit.streaming.callback import Callback, current_callback, using
from callbackkit.streaming.calling import call_anyhow, check_producer

__all__ = ["Node", "node", "router"]

_MISSING: Final = object()


class Node:
    """One step of a :class:`~callbackkit.Graph`, made by the decorators ``node`` and ``router``.

    The function gets what it names in its parameters:

    ``callback``
        the run that it streams to, with ``stream=True`` only
    ``state``
        the state that all nodes of the graph share
    ``input``
        the key ``input``, or if there is none a copy of all of it
    any other
        the key of that name, or else the default of the parameter
    ``**rest``
        every other key

    It returns a mapping, whose keys the nodes after it can name. One that is not async runs in a
    worker thread.

    Calling a node returns it, so both ``graph.add_node(step)`` and ``graph.add_node(step())``
    work. A method can be a node, too: ``graph.add_node(assistant.answer)``.

    Attributes:
        name: Name in the graph, and in what it streams.
        func: The plain function.
        stream: It streams, each invocation as a span of its own.
        is_start: A graph begins with it.
        is_end: A graph ends behind it.
        is_router: It chooses which node is next.

    Raises:
        TypeError: The function can't be called, is a generator, or takes ``*args``.
        ValueError: It has no name, or a parameter ``callback`` without ``stream=True``.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        start: bool = False,
        end: bool = False,
        stream: bool = False,
        name: str | None = None,
        is_router: bool = False,
    ) -> None:
        self.func: Callable[..., Any] = func
        self.name: str = _checked_name(func, name, "router" if is_router else "node")
        self.stream: bool = stream
        self.is_start: bool = start
        self.is_end: bool = end
        self.is_router: bool = is_router
        self._parameters: list[Parameter] = _parameters_of(func, self.name, stream=stream)
        self._named: frozenset[str] = frozenset(
            one.name for one in self._parameters if one.kind is not Parameter.VAR_KEYWORD
        )
        self.__doc__ = func.__doc__

    def __repr__(self) -> str:
        flags = {
            "router": self.is_router,
            "start": self.is_start,
            "end": self.is_end,
            "stream": self.stream,
        }
        told = ", ".join(flag for flag, is_set in flags.items() if is_set)
        return f"<Node {self.name!r}{': ' if told else ''}{told}>"

    def __call__(self) -> Self:
        """Return the node itself."""
        return self

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Node:
        """Return the node of a method: as a function does, it takes its object along."""
        if instance is None:
            return self
        bind: Any = getattr(self.func, "__get__", None)
        return Node(
            self.func if bind is None else bind(instance, owner),
            start=self.is_start,
            end=self.is_end,
            stream=self.stream,
            name=self.name,
            is_router=self.is_router,
        )

    def is_same(self, other: Node) -> bool:
        """Tell whether two nodes are one; a method is made a new node at each look at it."""
        return self is other or (self.name == other.name and self.func == other.func)

    # Running it.

    async def invoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 - as GraphAI has it
        callback: Callback | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run the function with what it names of *input*, and return what it returned.

        Args:
            input: What the nodes before it left.
            callback: The run that it streams to. Without one it is that of the context, or one
                that nobody reads.
            state: What it gets for its parameter ``state``.

        Raises:
            NodeInputError: *input* lacks a key that it names.
            NodeOutputError: It returned no mapping, or as a router no choice.
            Exception: What the function raised.
        """
        callback = callback or current_callback()
        if callback is None:
            async with Callback() as callback:
                return await self.invoke(input, callback, state)
        args, kwargs = self._arguments(input, callback, state)
        with callback.node(self.name) if self.stream else using(callback):
            output = await call_anyhow(self.func, *args, **kwargs)
            return self._checked(output)

    def _arguments(
        self, given: Mapping[str, Any], callback: Callback, state: Mapping[str, Any] | None
    ) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        missing: list[str] = []
        for parameter in self._parameters:
            if parameter.kind is Parameter.VAR_KEYWORD:
                kwargs |= {key: given[key] for key in given if key not in self._named}
                continue
            value = self._argument(parameter, given, callback, state)
            if value is Parameter.empty:
                missing.append(parameter.name)
            elif parameter.kind is Parameter.POSITIONAL_ONLY:
                args.append(value)
            else:
                kwargs[parameter.name] = value
        if missing:
            raise self._lack(missing, given)
        return args, kwargs

    def _argument(
        self,
        parameter: Parameter,
        given: Mapping[str, Any],
        callback: Callback,
        state: Mapping[str, Any] | None,
    ) -> Any:
        """Return the value of a parameter, its default, or ``Parameter.empty``."""
        name = parameter.name
        if name == "callback":
            return callback
        if name == "state" and (state is not None or name not in given):
            return {} if state is None else state
        value = given.get(name, _MISSING)
        if value is not _MISSING:
            return value
        return dict(given) if name == "input" else parameter.default

    def _lack(self, missing: list[str], given: Mapping[str, Any]) -> NodeInputError:
        there = ", ".join(map(repr, given)) or "no keys at all"
        return NodeInputError(
            f"node {self.name!r} names {', '.join(map(repr, missing))}, but the state has "
            f"{there:.500}. Have a node before it return the key, give it to execute(), or give "
            "the parameter a default"
        )

    def _checked(self, output: Any) -> dict[str, Any]:
        if self.is_router and isinstance(output, str | Node):
            return {"choice": output}
        if not isinstance(output, Mapping):
            raise NodeOutputError(
                f"node {self.name!r} returned {short_repr(output)}, but a node returns a mapping "
                "of what it adds to the state, {} for nothing"
            )
        added = cast("Mapping[str, Any]", output)
        if self.is_router and "choice" not in added and "choices" not in added:
            raise NodeOutputError(
                f"router {self.name!r} returned {short_repr(added)}, but a router returns the "
                'name of the next node, alone or as {"choice": name}, or {"choices": [...]}'
            )
        return dict(added)


# The decorators.


@overload
def node(func: Callable[..., Any], /) -> Node: ...


@overload
def node(
    *, start: bool = False, end: bool = False, stream: bool = False, name: str | None = None
) -> Callable[[Callable[..., Any]], Node]: ...


def node(
    func: Callable[..., Any] | None = None,
    /,
    *,
    start: bool = False,
    end: bool = False,
    stream: bool = False,
    name: str | None = None,
) -> Node | Callable[[Callable[..., Any]], Node]:
    """Make a function a :class:`~callbackkit.Node` of a graph.

    To be used with options or without::

        @node(start=True, stream=True)
        async def answer(query, callback):
            callback("It depends.")
            return {"answer": "It depends."}

    Args:
        func: The function, async or not.
        start: The graph begins with it.
        end: The graph ends behind it.
        stream: It gets ``callback`` if it has such a parameter, and each of its invocations is a
            span of its own.
        name: Name in the graph; that of the function unless given.
    """

    def decorate(func: Callable[..., Any]) -> Node:
        return Node(func, start=start, end=end, stream=stream, name=name)

    return decorate if func is None else decorate(func)


@overload
def router(func: Callable[..., Any], /) -> Node: ...


@overload
def router(
    *, start: bool = False, stream: bool = False, name: str | None = None
) -> Callable[[Callable[..., Any]], Node]: ...


def router(
    func: Callable[..., Any] | None = None,
    /,
    *,
    start: bool = False,
    stream: bool = False,
    name: str | None = None,
) -> Node | Callable[[Callable[..., Any]], Node]:
    """Make a function a node that chooses the next one.

    It returns the name of one of the nodes that the graph has it lead to, alone or in a mapping
    that may also add to the state; ``choices`` are run at the same time::

        @router
        async def route(query):
            return "search" if "?" in query else "chat"

        @router
        async def tools(query):
            return {"choices": ["search", "weather"], "since": "monday"}

    Args:
        func: The function, async or not.
        start: The graph begins with it.
        stream: As of :func:`~callbackkit.node`.
        name: As of :func:`~callbackkit.node`.
    """

    def decorate(func: Callable[..., Any]) -> Node:
        return Node(func, start=start, stream=stream, name=name, is_router=True)

    return decorate if func is None else decorate(func)


def _checked_name(func: object, name: object, kind: str) -> str:
    if isinstance(func, str):
        raise TypeError(f"@{kind}({func!r}): give a name as @{kind}(name={func!r})")
    if isinstance(func, Node):
        raise TypeError(f"{func!r} is a node already: @{kind} goes on a plain function")
    if isinstance(func, classmethod | staticmethod):
        raise TypeError(f"@{kind} goes below @staticmethod; a class method can't be a node")
    check_producer(func, kind)
    if name is None:
        name = getattr(func, "__name__", None)
        if not isinstance(name, str):
            raise ValueError(f"{callable_name(func)} has no name: give it one, @{kind}(name=...)")
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} is a str, not {name!r}")
    if not name:
        raise ValueError(f"the name of a {kind} can't be empty: {callable_name(func)}")
    return name


def _parameters_of(func: Callable[..., Any], name: str, *, stream: bool) -> list[Parameter]:
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except ValueError as exc:
        raise TypeError(
            f"node {name!r}: Python can't tell the parameters of {callable_name(func)}; wrap it "
            "in a function that names them"
        ) from exc
    for parameter in parameters:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            raise TypeError(
                f"node {name!r} takes *{parameter.name}, but what a node gets has names: name "
                "its parameters, or take **rest"
            )
        if parameter.name == "callback" and not stream:
            raise ValueError(
                f"node {name!r} has a parameter 'callback' but does not stream: write "
                "@node(stream=True), or take the parameter away"
            )
    return parameters
