"""Graphs of nodes."""

from collections.abc import Mapping
from typing import Any

from callbackkit import Callback, Graph, Node, node, router


@node(start=True, stream=True)
async def search(query: str, callback: Callback) -> dict[str, int]:
    callback(query)
    return {"found": 3}


@router
async def choose(found: int) -> dict[str, str]:
    return {"choice": "answer" if found else "give_up"}


@node(end=True)
def answer(found: int) -> dict[str, str]:
    return {"answer": f"{found} results"}


@node(end=True)
def give_up() -> dict[str, str]:
    return {"answer": "none"}


@node(begin=True)  # E
def other() -> dict[str, str]:
    return {}


checked: Node = search
graph = Graph(max_steps=10)
graph.add_node(search).add_node(answer()).add_node(give_up)
graph.add_router([search], choose, [answer, give_up])
graph.add_edge(search, answer)
graph.add_edge(search, 3)  # E
graph.add_parallel(search, [answer, give_up])
graph.add_join([answer, give_up], search)
graph.set_callback(Callback)
graph.set_callback(str)  # E
print(graph.to_mermaid())


async def main() -> None:
    callback: Callback = graph.get_callback()
    result: Mapping[str, Any] = await graph.execute({"query": "cats"}, callback=callback)
    await graph.execute(3)  # E
    print(result)
