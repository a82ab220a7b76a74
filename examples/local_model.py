"""A language model for the examples: a web server that speaks OpenAI's streaming wire format.

It knows no language. It repeats what it was told, a few characters at a time, the way
`POST /v1/chat/completions` of the real thing does.

    pip install starlette uvicorn
    python examples/local_model.py
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PORT = 8001
MODEL = "parrot"

# What became of the answers, for whoever wants to know if they were read to the end.
answers = {"begun": 0, "finished": 0, "abandoned": 0}


async def complete_chat(request: Request) -> Response:
    body = await request.json()
    if body["model"] != MODEL:
        error = {"message": f"there is no model {body['model']}", "code": "model_not_found"}
        return JSONResponse({"error": error}, status_code=404)
    question = body["messages"][-1]["content"]
    return StreamingResponse(stream_answer(question), media_type="text/event-stream")


async def stream_answer(question: str) -> AsyncIterator[str]:
    """Yield the lines of an answer; asked to `fail`, it breaks off in the middle."""
    answers["begun"] += 1
    ending = "abandoned"  # unless it comes to an end of its own
    try:
        yield chunk({"role": "assistant", "content": ""})
        for piece in pieces_of(f"You said: {question}"):
            await asyncio.sleep(0.01)
            yield chunk({"content": piece})
        ending = "finished"
        if question == "fail":
            yield 'data: {"error": {"message": "the parrot flew away", "code": "gone"}}\n\n'
        else:
            yield chunk({}, finish_reason="stop")
            yield "data: [DONE]\n\n"
    finally:
        answers[ending] += 1


def pieces_of(text: str) -> list[str]:
    """Cut a text as a tokenizer does: not where words end."""
    return [text[begin : begin + 4] for begin in range(0, len(text), 4)]


def chunk(delta: Mapping[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    value: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [choice],
    }
    return f"data: {json.dumps(value)}\n\n"


async def tell_answers(_: Request) -> Response:
    return JSONResponse(answers)


app = Starlette(
    routes=[
        Route("/v1/chat/completions", complete_chat, methods=["POST"]),
        Route("/answers", tell_answers),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT)
