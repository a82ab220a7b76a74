"""A graph checked and made ready to run."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from callbackkit.dispatch.callables import short_repr
from callbackkit.errors import GraphError, NodeOutputError
from callbackkit.streaming.node import Node

__all__ = ["Edge", "Join", "Plan", "make_plan"]


@attrs.frozen
class Edge:
    """One node may follow another.

    Attributes:
        source: The one.
        target: The other.
        times: How often it runs, at the same time.
    """

    source: str
    target: str
    times: int = 1

    def __str__(self) -> str:
        return f"the edge from {self.source!r} to {self.target!r}"


@attrs.frozen
class Join:
    """Branches that arrive from several nodes go on as one."""

    sources: tuple[str, ...]
    target: str

    def __str__(self) -> str:
        return f"the join of {', '.join(map(repr, self.sources))} at {self.target!r}"


@attrs.frozen
class Plan:
    """What a run of a graph goes by.

    Attributes:
        start: The first node.
        nodes: All of them by name.
        targets: What follows a node by edges, in the order they were added.
        join_of: Where a node's branch waits for others, if it does.
        sources: Which nodes a join waits for.
        reach: The nodes that may run after a node, for graphs with joins.
    """

    start: str
    nodes: Mapping[str, Node]
    targets: Mapping[str, tuple[str, ...]]
    join_of: Mapping[str, str]
    sources: Mapping[str, frozenset[str]]
    reach: Mapping[str, frozenset[str]]

    def after(self, node: Node, output: Mapping[str, Any]) -> Sequence[str]:
        """Return the nodes that follow one which is neither an end nor at a join.

        Raises:
            NodeOutputError: A router chose what it does not lead to.
        """
        if not node.is_router:
            return self.targets[node.name]
        if "choices" not in output:
            return [self._chosen(node, output["choice"])]
        choices: list[object] = output["choices"]
        if not isinstance(choices, list | tuple) or not choices:
            raise NodeOutputError(
                f'router {node.name!r} returned {short_repr(choices)} as "choices", but that is a '
                "list of at least one name"
            )
        return [self._chosen(node, choice) for choice in choices]

    def _chosen(self, node: Node, choice: object) -> str:
        name = choice.name if isinstance(choice, Node) else choice
        targets = self.targets[node.name]
        if not isinstance(name, str) or name not in targets:
            raise NodeOutputError(
                f"router {node.name!r} chose {short_repr(choice)}, but it leads to "
                f"{', '.join(map(repr, targets))} only. Return one of these, or add the other "
                "with add_router() or add_edge()"
            )
        # A str of its own class, an enum's say, may not format as what it is.
        return str.__str__(name)

    def ahead(self, name: str) -> frozenset[str]:
        """Return what may run from a node on, itself included."""
        return self.reach.get(name, frozenset()) | {name}


def make_plan(
    nodes: Mapping[str, Node], edges: Sequence[Edge], joins: Sequence[Join], *, strict: bool = False
) -> Plan:
    """Check a graph, and return what its runs go by.

    Raises:
        GraphError: It can't be run.
    """
    start = _start_of(nodes)
    if not any(node.is_end for node in nodes.values()):
        raise GraphError("the graph has no end: mark the last node, @node(end=True)")
    links: list[Edge | Join] = [*edges, *joins]
    for link in links:
        _check_known(link, nodes)
    targets = _targets(nodes, edges)
    join_of = _joins_by_source(nodes, joins, targets)
    _check_dead_ends(nodes, targets, join_of)
    followers = {name: _followers(node, targets, join_of) for name, node in nodes.items()}
    _check_reachable(start, followers)
    if strict:
        _check_acyclic(followers)
    return Plan(
        start=start,
        nodes=dict(nodes),
        targets=targets,
        join_of=join_of,
        sources={
            target: frozenset(source for source in join_of if join_of[source] == target)
            for target in join_of.values()
        },
        reach={name: _reach(name, followers) for name in nodes} if joins else {},
    )


def _start_of(nodes: Mapping[str, Node]) -> str:
    if not nodes:
        raise GraphError("the graph has no nodes: add_node() them")
    starts = [name for name, node in nodes.items() if node.is_start]
    if not starts:
        raise GraphError("the graph has no start: mark the first node, @node(start=True)")
    if len(starts) > 1:
        raise GraphError(
            f"the graph has {len(starts)} starts, {', '.join(map(repr, starts))}: leave "
            "start=True to one of them"
        )
    return starts[0]


def _check_known(link: Edge | Join, nodes: Mapping[str, Node]) -> None:
    sources = (link.source,) if isinstance(link, Edge) else link.sources
    for name in (*sources, link.target):
        if name not in nodes:
            raise GraphError(
                f"{link} names {name!r}, which is no node of the graph: add_node() it, or name "
                f"one of {', '.join(map(repr, nodes))}"
            )


def _targets(nodes: Mapping[str, Node], edges: Iterable[Edge]) -> dict[str, tuple[str, ...]]:
    targets: dict[str, tuple[str, ...]] = dict.fromkeys(nodes, ())
    for edge in edges:
        is_again = edge.target in targets[edge.source]
        if not is_again:
            targets[edge.source] += (edge.target,) * edge.times
        elif not nodes[edge.source].is_router:
            # A router may be told more than once what it can choose.
            raise GraphError(
                f"{edge} was added twice: leave one, or to run {edge.target!r} twice at once "
                f"add_parallel({edge.source!r}, [{edge.target!r}, {edge.target!r}])"
            )
    return targets


def _joins_by_source(
    nodes: Mapping[str, Node], joins: Iterable[Join], targets: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    join_of: dict[str, str] = {}
    for join in joins:
        for source in join.sources:
            _check_source(join, nodes[source])
            other = join_of.setdefault(source, join.target)
            # An edge beside a join to the same node says the same again.
            elsewhere = [name for name in (other, *targets[source]) if name != join.target]
            if elsewhere:
                raise GraphError(
                    f"{join}: after {source!r} the graph also goes on at {elsewhere[0]!r}. Take "
                    "one away, or put a node between them"
                )
    return join_of


def _check_source(join: Join, node: Node) -> None:
    if node.is_router:
        raise GraphError(
            f"{join}: {node.name!r} is a router, whose choice is what comes next. Join the nodes "
            "it chooses among"
        )
    if node.is_end:
        raise GraphError(
            f"{join}: {node.name!r} is an end, after which nothing comes. Take end=True away, or "
            "leave it out of the join"
        )


def _check_dead_ends(
    nodes: Mapping[str, Node], targets: Mapping[str, tuple[str, ...]], join_of: Mapping[str, str]
) -> None:
    for name, node in nodes.items():
        if targets[name] or node.is_end or name in join_of:
            continue
        if node.is_router:
            raise GraphError(f"router {name!r} has nothing to choose from: add_router() says what")
        raise GraphError(
            f"nothing comes after node {name!r}: mark it, @node(end=True), or add_edge() from it"
        )


def _followers(
    node: Node, targets: Mapping[str, tuple[str, ...]], join_of: Mapping[str, str]
) -> frozenset[str]:
    if node.is_end:
        return frozenset()
    joined = {join_of[node.name]} if node.name in join_of else set[str]()
    return frozenset(targets[node.name]) | joined


def _reach(name: str, followers: Mapping[str, Iterable[str]]) -> frozenset[str]:
    reached: set[str] = set()
    waiting = list(followers[name])
    while waiting:
        one = waiting.pop()
        if one not in reached:
            reached.add(one)
            waiting += followers[one]
    return frozenset(reached)


def _check_reachable(start: str, followers: Mapping[str, frozenset[str]]) -> None:
    lost = followers.keys() - _reach(start, followers) - {start}
    if lost:
        names = ", ".join(repr(name) for name in followers if name in lost)
        raise GraphError(
            f"the start {start!r} does not lead to {names}: add_edge() to it, or leave it out"
        )


def _check_acyclic(followers: Mapping[str, frozenset[str]]) -> None:
    try:
        graphlib.TopologicalSorter(followers).prepare()
    except graphlib.CycleError as exc:
        # Told backwards: the sorter takes what follows a node for what it depends on.
        circle = " -> ".join(map(repr, reversed(exc.args[1])))
        raise GraphError(f"the graph goes round in a circle: {circle}") from None
