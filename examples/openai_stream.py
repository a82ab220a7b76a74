"""A model's answer in the browser, as it is written: OpenAI's client, a node, a stream.

`stream_response` owns the run. A browser that loses its connection goes on where it was; if it does
not come back, that ends the run and with it the request to the model.

    pip install callbackkit fastapi openai uvicorn
    python examples/local_model.py &
    export OPENAI_BASE_URL=http://127.0.0.1:8001/v1 OPENAI_API_KEY=none MODEL=parrot
    python examples/openai_stream.py

Then open http://127.0.0.1:8000/. Without the exports but with a key of your own it asks OpenAI.
"""

import logging
import os

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from callbackkit import Callback, Graph, node
from callbackkit.http.starlette import stream_response

MODEL = os.environ.get("MODEL", "gpt-4o-mini")

PAGE = """<!doctype html><title>Chat</title>
<form><input name="query" value="Hello!"><button>Ask</button></form>
<p></p>
<script>
  document.querySelector("form").onsubmit = submitted => {
    submitted.preventDefault();
    const answer = document.querySelector("p");
    const query = new URLSearchParams(new FormData(submitted.target));
    const stream = new EventSource("/chat?" + query);
    answer.textContent = "";
    stream.onmessage = message => {
      const event = JSON.parse(message.data);
      if (event.type === "token") answer.textContent += event.token;
      if (event.type === "stream_end") stream.close();
    };
  };
</script>
"""

# Browsers are told that a run failed; why it did is logged, and only that.
logging.basicConfig()
app = FastAPI()


@node(start=True, end=True, stream=True)
async def answer(query: str, callback: Callback) -> dict[str, str]:
    async with AsyncOpenAI() as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": query}],
            stream=True,
        )
        return {"answer": await callback.pipe(stream, key=text_of)}


def text_of(chunk: ChatCompletionChunk) -> str | None:
    """Return the text of a chunk; the last ones have none."""
    return chunk.choices[0].delta.content if chunk.choices else None


graph = Graph().add_node(answer)


@app.get("/chat")
async def chat(query: str) -> Response:
    return stream_response(graph.execute, {"query": query})


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


if __name__ == "__main__":
    uvicorn.run(app)
