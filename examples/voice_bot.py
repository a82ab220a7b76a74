"""A voice bot on the telephone: a recorded call is played into callbacks.

A thread plays a WAV file as the driver of a telephone line would, 20 ms at a time, into a
`CallbackSlot`; all else happens in the event loop. Where the caller speaks is found by loudness.
What was said is not: there is no speech recogniser and no language model in here, so the first
three utterances found are taken for those of `SCRIPT`, whatever the recording says. Some callbacks
fail, block or are cancelled on purpose. Times are positions in the recording, not of the clock.

    python examples/voice_bot.py [call.wav] [--realtime]
"""

import asyncio
import math
import struct
import sys
import threading
import time
import wave
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio

from callbackkit import (
    CallbackCancelledError,
    CallbackChain,
    CallbackRegistry,
    CallbackSlot,
    CallbackTimeoutError,
    ErrorContext,
    EventRouter,
    FunctionRegistry,
    ObservableState,
    Operation,
)

CALL = Path(__file__).parent / "data" / "call.wav"
FRAMES_PER_SECOND = 50
WAITING_FRAMES = 250  # in real time, the oldest are dropped if the bot is five seconds late
SPEECH_LEVEL = -45.0  # decibels below full scale; a louder frame may be speech
SPEECH_BEGINS, SPEECH_ENDS = 3, 20  # so many loud, or quiet, frames in a row make sure
Status = Literal["idle", "listening", "thinking", "speaking", "ended"]
Message = Mapping[str, Any]


class Turn(NamedTuple):
    """What the caller is taken to have said, and what a language model would make of it."""

    number: int
    heard: str
    function: str
    arguments: str
    reply: str

    def events(self) -> Iterator[Message]:
        """Yield what a model streams; it cuts the JSON text wherever that happens to be."""
        call = {"call_id": f"call-{self.number}", "turn": self}
        yield {"type": "function_call.started", **call}
        for cut in range(0, len(self.arguments), 5):
            yield {"type": "function_call.delta", **call, "delta": self.arguments[cut : cut + 5]}
        yield {"type": "function_call.done", **call}


SCRIPT = [
    Turn(1, "hello what is my balance", "balance", '{"of": "current"}', "It is {balance} pounds."),
    Turn(2, "send uh fifty pounds to ada", "transfer", '{"to": "Ada", "amount": 50}', "Sent it."),
    Turn(3, "um thank you goodbye", "end_call", '{"reason": "goodbye"}', "Goodbye!"),
]


def read_recording(path: Path = CALL) -> list[bytes]:
    """Return the frames of a WAV file; a ValueError tells what is wrong with one."""
    try:
        with wave.open(str(path), "rb") as wav:
            channels, width, rate, promised = wav.getparams()[:4]
            size = channels * width
            data = wav.readframes(min(promised, path.stat().st_size // size + 1))
    except (wave.Error, EOFError, RuntimeError) as exc:
        raise ValueError(f"{path}: not a WAV file with PCM sound ({exc or 'cut off'})") from exc
    if width != 2 or rate < FRAMES_PER_SECOND:
        raise ValueError(f"{path}: {8 * width} bits at {rate} Hz; convert it to 16 bits")
    if not data or len(data) < promised * size:
        raise ValueError(f"{path}: cut off, {len(data) // size} of {promised} samples are there")
    length = rate // FRAMES_PER_SECOND * size
    return [data[cut : cut + length] for cut in range(0, len(data), length)]


def play(frames: list[bytes], slot: CallbackSlot, over: threading.Event, realtime: bool) -> None:
    """Hand a call to a slot and, like every audio driver, wait for nobody."""
    begin = time.monotonic()
    for number, frame in enumerate(frames):
        due = begin + (number + 1) / FRAMES_PER_SECOND if realtime else 0.0
        if over.wait(max(due - time.monotonic(), 0)):
            return
        slot(frame)
    slot.close()


def loudness(frame: bytes) -> float:
    """Return the level of a frame, all its channels, in decibels below full scale."""
    samples = struct.unpack(f"<{len(frame) // 2}h", frame)
    power = sum(sample * sample for sample in samples) / len(samples) / 32768**2
    return 10 * math.log10(max(power, 1e-9))  # 16 bits can tell little below 90 dB from nothing


def drop_fillers(text: str) -> str:
    return " ".join(word for word in text.split() if word not in {"uh", "um"})


async def add_dollars(text: str) -> str:
    if "pounds" in text:
        raise LookupError("no exchange rate today")
    return text


def note_in_crm() -> None:
    raise ConnectionError("the customer database is down")


def light_lamp() -> None:
    raise OSError("the lamp is not plugged in")


def upload() -> None:
    """Wait in an event loop of this thread for a task that somebody else has cancelled."""
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(asyncio.sleep(60))
        task.cancel()
        runner.get_loop().run_until_complete(task)


class VoiceBot:
    """Answers one call and reports it line by line.

    ``at`` is in seconds of the recording, ``level`` in decibels, ``progress`` of a transfer 0 to 1.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.at, self.level, self.progress = 0.0, -90.0, 0.0
        kinds = ["frames", "dropped", "turns", "progress", "failed", "timed out", "cancelled"]
        self.counts = Counter(dict.fromkeys(kinds, 0))
        self._report = report
        self._is_speech, self._in_a_row = False, 0  # and how many frames say otherwise
        self._coming: deque[Message] = deque()  # what the model is sending
        self._said: list[Message] = []
        self._hung_up_by = "the caller"
        self._is_over = threading.Event()
        self._bank_delay = 0.0  # seconds that a step of a transfer takes
        self.state = ObservableState[Status]("idle", on_error=self._on_failure)
        self.state.add_change_callback(lambda old, new: self._tell(f"state {old} -> {new}"))
        self.state.add_change_callback(light_lamp, new="speaking")
        router = EventRouter("type", new_registry=self._new_registry)
        self._telephony, self._realtime = router.channel("telephony"), router.channel("realtime")
        self._telephony.register_handler("call.started", lambda: self.state.set("listening"))
        self._telephony.register_handler("media", self._on_media)
        self._telephony.register_handler("call.ended", self._on_call_ended)
        self._realtime.register_handler("speech.started", self._on_speech_started)
        self._realtime.register_handler("speech.stopped", self._on_speech_stopped)
        self._realtime.register_handler("function_call.*", self._on_function_call, with_event=True)
        self._realtime.register_handler("response.delta", self._said.append)
        self._realtime.register_handler("response.done", self._on_response_done)
        self._functions = FunctionRegistry()
        self._functions.register_function("balance", lambda: {"balance": 120})
        self._functions.register_function("transfer", self._transfer)
        self._functions.register_function("end_call", lambda: {"hang_up": True})
        self._functions.on_result(lambda value: "hang_up" in value, self._hang_up)
        self._cleaning = CallbackChain(on_error="skip")
        self._cleaning.add_callback(drop_fillers).add_callback(add_dollars)
        self._cleaning.add_callback(str.capitalize)
        self._follow_ups = self._new_registry()
        self._follow_ups.register_callback("turn.1", note_in_crm)
        self._follow_ups.register_callback("turn.2", self.archive, thread=True, timeout=0.1)
        self._follow_ups.register_callback("turn.3", upload, thread=True)

    async def answer(self, frames: list[bytes], realtime: bool = False) -> None:
        """Take a call from its beginning to its end."""
        self._bank_delay = 0.15 if realtime else 0.0
        slot = CallbackSlot(self._show_level)
        stream = slot.to_stream(max_items=WAITING_FRAMES if realtime else len(frames))
        line = threading.Thread(target=play, args=(frames, slot, self._is_over, realtime))
        line.start()
        try:
            await self._telephony.handle_event({"type": "call.started"})
            async for frame in stream:
                self.counts["dropped"] = stream.dropped
                await self._telephony.handle_event({"type": "media", "frame": frame})
                if self.state.value == "ended":
                    break
            await self._telephony.handle_event({"type": "call.ended"})
        finally:
            self._is_over.set()
            line.join()

    def head(self, bar: Callable[[float, int], str]) -> list[tuple[str, str]]:
        """Return lines for a live view, each with a colour; *bar* draws a fraction."""
        state = self.state.value
        colours = {"listening": "green", "thinking": "yellow", "speaking": "cyan"}
        heard = 1 + self.level / 60  # 60 dB below full scale is an empty meter
        return [
            ("callbackkit: a phone call", "bold"),
            (f"state    {state:<10} {self.at:5.2f} s", colours.get(state, "")),
            (f"level    {bar(heard, 17)} {self.level:4.0f} dB", ""),
            (f"transfer {bar(self.progress, 17)} {self.progress:5.0%}", ""),
            (", ".join(f"{name} {count}" for name, count in self.counts.items()), ""),
        ]

    def _show_level(self, frame: bytes) -> None:
        self.level = loudness(frame)  # for a meter; in the thread of the telephone line

    def _tell(self, text: str) -> None:
        self._report(f"{self.at:5.2f}  {text}")

    def _new_registry(self) -> CallbackRegistry:
        registry = CallbackRegistry()
        registry.add_error_callback(self._on_failure)
        return registry

    def _on_failure(self, exception: Exception, context: ErrorContext) -> None:
        kind = "timed out" if isinstance(exception, CallbackTimeoutError) else "failed"
        kind = "cancelled" if isinstance(exception, CallbackCancelledError) else kind
        self.counts[kind] += 1
        why = f": {exception}" if kind == "failed" else ""
        self._tell(f"! {context.callback.__name__} {kind}{why}")

    def archive(self) -> None:
        """Block for as long as the call lasts."""
        self._is_over.wait()

    async def _on_media(self, message: Message) -> None:
        self.at = (self.counts["frames"] + self.counts["dropped"]) / FRAMES_PER_SECOND
        self.counts["frames"] += 1
        if found := self._detect(loudness(message["frame"])):
            await self._realtime.handle_event({"type": found})
        elif self._coming and self.counts["frames"] % 2:  # the model sends 25 events a second
            await self._realtime.handle_event(self._coming.popleft())

    def _detect(self, level: float) -> str | None:
        """Return the event that a frame of this level brings about, if any."""
        self._in_a_row = self._in_a_row + 1 if (level > SPEECH_LEVEL) != self._is_speech else 0
        if self._in_a_row < (SPEECH_ENDS if self._is_speech else SPEECH_BEGINS):
            return None
        self._is_speech, self._in_a_row = not self._is_speech, 0
        return "speech.started" if self._is_speech else "speech.stopped"

    def _on_call_ended(self) -> None:
        self.state.set("ended")
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        self._tell(f"{self._hung_up_by} hung up: {counts}")

    def _on_speech_started(self) -> None:
        self._tell("speech started")
        if self.state.value == "speaking":  # the bot lets itself be interrupted
            self._coming.clear()
            self._on_response_done()

    async def _on_speech_stopped(self) -> None:
        self._tell("speech stopped")
        if self.counts["turns"] == len(SCRIPT):
            return
        turn = SCRIPT[self.counts["turns"]]
        self.counts["turns"] += 1
        heard = await self._cleaning.run(turn.heard)
        if heard.error is not None:
            self.counts["failed"] += 1
            self._tell(f"! step {heard.failed_at} of cleaning failed: {heard.error}")
        self._tell(f"caller: {heard.value}")
        self.state.set("thinking")
        self._coming.extend(turn.events())
        await self._follow_ups.trigger_callbacks(f"turn.{turn.number}")

    async def _on_function_call(self, event_type: str, message: Message) -> None:
        turn, call_id = message["turn"], message["call_id"]
        if event_type == "function_call.started":
            self._functions.start(call_id, turn.function)
        elif event_type == "function_call.delta":
            self._functions.feed(call_id, message["delta"])
        else:
            self._tell(f"function {turn.function} {turn.arguments}")
            value = await self._functions.finish(call_id)
            self._tell(f"function {turn.function} returned {value}")
            self.state.set("speaking")
            for word in turn.reply.format(**value).split():
                self._coming.append({"type": "response.delta", "word": word})
            self._coming.append({"type": "response.done"})

    def _on_response_done(self) -> None:
        self._tell(f"bot: {' '.join(message['word'] for message in self._said)}")
        self._said.clear()
        self.state.set("ended" if self._hung_up_by == "the bot" else "listening")

    async def _transfer(self, asked: Message) -> Message:
        operation = Operation(on_progress=self._on_progress, min_interval=0)
        for done, step in enumerate(["checking the payee", "reserving the money", "sending it"]):
            operation.update(done / 3, step)
            await anyio.sleep(self._bank_delay)
        operation.complete(asked["amount"])
        return {"sent": asked["amount"]}

    def _on_progress(self, fraction: float, message: str | None) -> None:
        self.progress = fraction
        self.counts["progress"] += 1
        self._tell(f"transfer {fraction:.0%} {message}")

    def _hang_up(self) -> None:
        self._hung_up_by = "the bot"


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:] if argument != "--realtime"]
    anyio.run(VoiceBot(print).answer, read_recording(*paths), "--realtime" in sys.argv)
