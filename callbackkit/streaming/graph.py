"""Nodes, how they follow each other, and running them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Self

from callbackkit.dispatch.callables import callable_name, check_callable, short_repr
from callbackkit.errors import GraphError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.mermaid import draw
from callbackkit.streaming.node import Node
from callbackkit.streaming.ownership import is_owned, produce
from callbackkit.streaming.plan import Edge, Join, Plan, make_plan
from callbackkit.streaming.walk import Walk

__all__ = ["Graph"]


class Graph:
    """Nodes that run one after another, or at the same time, and stream to one callback.

    Nodes are named by themselves or by their names; the order in which nodes, edges and joins are
    added does not matter. :meth:`execute` may run any number of times at once.

    ::

        graph = Graph()
        graph.add_node(search).add_node(answer).add_edge(search, answer)
        result = await graph.execute({"query": "tea"})

    Args:
        max_steps: How many nodes may run one after another in a run; of branches that run at the
            same time the longest counts.
        initial_state: What :meth:`get_state` returns at first.

    Raises:
        ValueError: *max_steps* is less than 1.
    """

    def __init__(self, max_steps: int = 10, initial_state: dict[str, Any] | None = None) -> None:
        if isinstance(max_steps, bool) or not isinstance(max_steps, int):
            raise TypeError(f"max_steps must be an int, not {max_steps!r}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {max_steps}")
        self.max_steps: int = max_steps
        self._state: dict[str, Any] = {} if initial_state is None else _checked_state(initial_state)
        self._nodes: dict[str, Node] = {}
        # Nodes that edges and joins were given, to be compared with those of the same name.
        self._mentioned: list[Node] = []
        self._edges: list[Edge] = []
        self._joins: list[Join] = []
        self._plan: Plan | None = None
        self._callback_class: Callable[[], Callback] = Callback

    def __repr__(self) -> str:
        return f"<Graph of {', '.join(map(repr, self._nodes)) or 'no nodes'}>"

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes by name, in the order they were added; read-only."""
        return MappingProxyType(self._nodes)

    # Building it.

    def add_node(self, node: Node) -> Self:
        """Add a node; ``add_node(step)`` and ``add_node(step())`` are the same.

        Raises:
            TypeError: It is not made with ``@node`` or ``@router``.
            GraphError: The graph has a node of that name.
        """
        if not isinstance(node, Node):
            raise TypeError(f"add_node() takes a node, not {_shown(node)}: decorate it with @node")
        if node.name in self._nodes:
            raise GraphError(
                f"the graph has a node {node.name!r} already: call this one otherwise, "
                "@node(name=...)"
            )
        self._nodes[node.name] = node
        self._plan = None
        return self

    def add_edge(self, source: Node | str, destination: Node | str) -> Self:
        """Have one node follow another. If several follow one, they run at the same time."""
        return self._add(Edge(self._name(source), self._name(destination)))

    def add_router(
        self,
        sources: Iterable[Node | str],
        router: Node | str,
        destinations: Iterable[Node | str],
    ) -> Self:
        """Have a router follow some nodes, and choose among others.

        Args:
            sources: The nodes that it follows; may be empty.
            router: The router.
            destinations: What it may choose.

        Raises:
            TypeError: *router* is no router.
        """
        if isinstance(router, Node) and not router.is_router:
            raise TypeError(f"{router!r} is no router: decorate it with @router")
        name = self._name(router)
        for source in _several("sources", sources):
            self._add(Edge(self._name(source), name))
        for destination in _several("destinations", destinations):
            self._add(Edge(name, self._name(destination)))
        return self

    def add_parallel(
        self,
        source: Node | str,
        targets: Iterable[Node | str] = (),
        *,
        destinations: Iterable[Node | str] = (),
    ) -> Self:
        """Have several nodes follow one, and run at the same time.

        Args:
            source: The one.
            targets: The others; one that is named twice runs twice.
            destinations: What GraphAI calls *targets*.
        """
        name = self._name(source)
        named = [*_several("targets", targets), *_several("destinations", destinations)]
        for target, times in Counter(map(self._name, named)).items():
            self._add(Edge(name, target, times))
        return self

    def add_join(
        self,
        sources: Iterable[Node | str],
        target: Node | str | None = None,
        *,
        destination: Node | str | None = None,
    ) -> Self:
        """Have branches that run at the same time go on as one behind these nodes.

        The *target* runs once, when all branches of the fork have stopped, with what every
        branch that came here has added to the state. They add in the order in which they were
        forked: of a key that several wrote, the last one's counts.

        Args:
            sources: The nodes.
            target: Where they go on.
            destination: What GraphAI calls *target*.
        """
        ends = [end for end in (target, destination) if end is not None]
        if len(ends) != 1:
            raise TypeError("add_join() takes one target; destination= is another word for it")
        names = tuple(self._name(source) for source in _several("sources", sources))
        if not names:
            raise ValueError("sources is empty: name the nodes whose branches are to be joined")
        self._joins.append(Join(names, self._name(ends[0])))
        self._plan = None
        return self

    def _add(self, edge: Edge) -> Self:
        self._edges.append(edge)
        self._plan = None
        return self

    def _name(self, node: Node | str) -> str:
        if isinstance(node, str):
            return node
        if not isinstance(node, Node):
            raise TypeError(f"a node or the name of one is wanted, not {_shown(node)}")
        self._mentioned.append(node)
        return node.name

    def compile(self, *, strict: bool = False) -> Self:
        """Check that the graph can be run; :meth:`execute` does so, too.

        It has one start, an end, and every other node is led to and leads on.

        Args:
            strict: Whether a circle is an error.

        Raises:
            GraphError: What is wrong, and the remedy.
        """
        if self._plan is None or strict:
            for node in self._mentioned:
                there = self._nodes.get(node.name)
                if there is not None and not there.is_same(node):
                    raise GraphError(
                        f"an edge was given another node {node.name!r} than the graph has: call "
                        "one of the two otherwise, @node(name=...)"
                    )
            self._plan = make_plan(self._nodes, self._edges, self._joins, strict=strict)
        return self

    def to_mermaid(self) -> str:
        """Return the graph as a flowchart for Mermaid, which Markdown on many sites shows.

        Raises:
            GraphError: As :meth:`compile`.
        """
        return draw(self._compiled())

    def _compiled(self) -> Plan:
        self.compile()
        assert self._plan is not None
        return self._plan

    # The state that nodes share.

    def get_state(self) -> dict[str, Any]:
        """Return the state that all runs of the graph share; nodes get it as ``state``."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> Self:
        """Put another state in its place."""
        self._state = _checked_state(state)
        return self

    def update_state(self, values: Mapping[str, Any]) -> Self:
        """Add to the state."""
        self._state.update(values)
        return self

    def reset_state(self) -> Self:
        """Put an empty state in its place."""
        self._state = {}
        return self

    # Running it.

    def set_callback(self, callback_class: Callable[[], Callback]) -> Self:
        """Have :meth:`get_callback` make its callbacks with this.

        Args:
            callback_class: A subclass of :class:`~callbackkit.Callback`, or any function that
                makes one.
        """
        check_callable(callback_class, "callback_class")
        made: Any = callback_class
        if isinstance(made, type) and not issubclass(made, Callback):
            raise TypeError(f"{made.__qualname__} is no subclass of callbackkit.Callback")
        self._callback_class = callback_class
        return self

    def get_callback(self) -> Callback:
        """Return a new callback, for the next :meth:`execute` of this context.

        One that is given none takes it: in the task that called this, or in tasks started from
        there. It is taken once, and a newer one takes its place.
        """
        callback = self._new_callback()
        kept = tuple(ticket for ticket in _GIVEN.get() if ticket.is_of_another(self))
        _GIVEN.set((*kept, _Ticket(self, callback)))
        return callback

    def _new_callback(self) -> Callback:
        callback = self._callback_class()
        if not isinstance(callback, Callback):
            raise TypeError(
                f"{callable_name(self._callback_class)}, set with set_callback(), returned "
                f"{short_repr(callback)}, no callbackkit.Callback"
            )
        return callback

    def _callback_for(self, callback: Callback | None) -> Callback:
        """Return what a run streams to: the one given, the one of this context, or a new one."""
        if callback is None:
            taken = (ticket.take(self) for ticket in _GIVEN.get())
            return next((one for one in taken if one is not None), None) or self._new_callback()
        if not isinstance(callback, Callback):
            raise TypeError(f"callback must be a callbackkit.Callback, not {_shown(callback)}")
        for ticket in _GIVEN.get():
            ticket.void(callback)
        return callback

    async def execute(
        self,
        input: Mapping[str, Any],  # noqa: A002 - as GraphAI has it
        callback: Callback | None = None,
    ) -> dict[str, Any]:
        """Run the graph, and end the stream with whatever becomes of it.

        Within a node of another graph, or a function of :func:`~callbackkit.run_stream`, that
        streams to the same callback, the stream is left open for the rest of it.

        Args:
            input: The state that the first node gets.
            callback: Where it streams to; unless given, the one that :meth:`get_callback`
                returned in this context, or one that nobody reads.

        Returns:
            *input* with what the nodes added to it.

        Raises:
            GraphError: The graph can't be run, or took more than *max_steps*
                (:exc:`~callbackkit.GraphStepsError`).
            NodeInputError: A node names what the state lacks.
            NodeOutputError: A node returned no mapping, or a router no node it leads to.
            StreamCancelledError: Somebody cancelled the callback.
            TimeoutError: The callback timed out.
            Exception: What a node raised; the readers are raised it, too.
        """
        callback = self._callback_for(callback)
        if is_owned(callback):
            return await self._run(input, callback)
        return await produce(callback, lambda: self._run(input, callback))

    async def _run(self, state: Mapping[str, Any], callback: Callback) -> dict[str, Any]:
        plan = self._compiled()
        if not isinstance(state, Mapping):
            raise TypeError(f"execute() takes a mapping, not {_shown(state)}")
        return await Walk(plan, callback, self._state, self.max_steps).run(state)


class _Ticket:
    """A callback that waits to be taken by one run of its graph.

    Tasks inherit it with their context, so it is one object that knows whether it was taken.
    """

    __slots__ = ("_graph", "_held")

    def __init__(self, graph: Graph, callback: Callback) -> None:
        self._graph = weakref.ref(graph)
        self._held = [callback]

    def is_of_another(self, graph: Graph) -> bool:
        """Tell whether it is to be kept when *graph* gives a new one."""
        return bool(self._held) and self._graph() not in {None, graph}

    def take(self, graph: Graph) -> Callback | None:
        if self._graph() is not graph:
            return None
        try:
            # Atomic: of two threads that share a context one gets it.
            return self._held.pop()
        except IndexError:
            return None

    def void(self, callback: Callback) -> None:
        """Have nobody take a callback that was given to a run by hand."""
        if self._held and self._held[0] is callback:
            self._held.clear()


_GIVEN: Final[ContextVar[tuple[_Ticket, ...]]] = ContextVar("callbackkit_given", default=())


def _several(what: str, nodes: Iterable[Node | str]) -> list[Node | str]:
    if isinstance(nodes, str | Node):
        raise TypeError(f"{what} is a list of nodes or names, not one: write [{_shown(nodes)}]")
    return list(nodes)


def _checked_state(state: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise TypeError(f"the state is a dict, not {_shown(state)}")
    return state


def _shown(value: object) -> str:
    return callable_name(value) if callable(value) else short_repr(value)
