"""Draw a graph as text that Mermaid makes a picture of."""

from __future__ import annotations

from collections.abc import Iterator

from callbackkit.streaming.node import Node
from callbackkit.streaming.plan import Plan

__all__ = ["draw"]


def draw(plan: Plan) -> str:
    """Return a flowchart: edges as arrows, choices dotted, joins thick.

    Source:
        The syntax is that of https://mermaid.js.org/syntax/flowchart.html.
    """
    ids = {name: f"n{number}" for number, name in enumerate(plan.nodes)}
    shapes = [f"    {ids[name]}{_shape(node)}" for name, node in plan.nodes.items()]
    arrows = [f"    {ids[source]} {arrow} {ids[target]}" for source, arrow, target in _arrows(plan)]
    return "\n".join(["flowchart TD", *shapes, *arrows]) + "\n"


def _shape(node: Node) -> str:
    label = f'"{_escaped(node.name)}"'
    if node.is_router:
        return f"{{{label}}}"
    if node.is_start or node.is_end:
        return f"([{label}])"
    return f"[{label}]"


def _escaped(name: str) -> str:
    """Return a name as Mermaid shows it: it has numbers for what may mean something to it."""
    return "".join(char if char.isalnum() or char in " _-." else f"#{ord(char)};" for char in name)


def _arrows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for source, node in plan.nodes.items():
        if node.is_end:
            continue
        if source in plan.join_of:
            yield source, "==>", plan.join_of[source]
            continue
        for target in plan.targets[source]:
            yield source, "-.->" if node.is_router else "-->", target
