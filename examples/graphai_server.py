"""The web server of GraphAI's documentation, on callbackkit: only the import is another.

A request starts the graph in the background and streams its tokens back. The graph takes the
callback that `get_callback()` gave in the same request, and ends the stream whatever its nodes do.

    pip install callbackkit fastapi uvicorn
    python examples/graphai_server.py
    curl -N -d '{"query": "How are you?"}' http://127.0.0.1:8000/stream

`callback.aiter()` as a response is text with nothing escaped: a model that writes
`<graphai:END>` looks like the end of the stream. `/escaped` is the same answer as
`callbackkit.TokenParser` can read it back, and a browser is best served as in openai_stream.py.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from callbackkit import Callback, Graph, headers_for, node, text

app = FastAPI()
# An event loop holds its tasks weakly, so somebody else has to hold them.
running: set[asyncio.Task[Any]] = set()


async def get_llm_response(query: str) -> AsyncIterator[str]:
    """Answer as a language model might: a word at a time."""
    for word in f"You asked: {query} Let me think about that.".split():
        await asyncio.sleep(0.01)
        yield f"{word} "


# A parameter called `input` gets the whole state, hence the name that shadows a built-in.
@node(start=True, stream=True)
async def llm_stream(input: dict[str, str], callback: Callback) -> dict[str, str]:  # noqa: A002
    async for chunk in get_llm_response(input["query"]):
        await callback.acall(chunk)
    return {"status": "complete"}


@node(end=True)
async def final_node(input: dict[str, str]) -> dict[str, str]:  # noqa: A002
    return {"status": "success"}


graph = Graph()
graph.add_node(llm_stream())
graph.add_node(final_node())
graph.add_edge(llm_stream, final_node)


@app.post("/stream")
async def stream_endpoint(request: Request) -> StreamingResponse:
    data = await request.json()
    callback = graph.get_callback()
    start(data["query"])
    return StreamingResponse(callback.aiter(), media_type="text/event-stream")


@app.post("/escaped")
async def escaped_endpoint(request: Request) -> StreamingResponse:
    data = await request.json()
    callback = graph.get_callback()
    start(data["query"])
    return StreamingResponse(text(callback), headers=headers_for("text"))


def start(query: str) -> None:
    """Run the graph in the background; it finds the callback of this request by itself."""
    task = asyncio.create_task(graph.execute({"query": query}))
    running.add(task)
    task.add_done_callback(running.discard)


if __name__ == "__main__":
    uvicorn.run(app)
