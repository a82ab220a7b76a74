"""The voice bot example on its recording, on recordings changed, and on files that are none."""

import array
import struct
import threading
import time
import wave
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from hypothesis import given, strategies as st

from callbackkit.__main__ import load

EXAMPLES = Path(__file__).parents[2] / "examples"
CALL = EXAMPLES / "data" / "call.wav"
TRANSCRIPT = Path(__file__).with_name("transcript.txt").read_text("utf-8").splitlines()
HEADER = 44  # bytes before the samples of call.wav


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLES / "voice_bot.py")


async def transcript(example: ModuleType, path: Path = CALL) -> list[str]:
    lines: list[str] = []
    await example.VoiceBot(lines.append).answer(example.read_recording(path))
    return lines


def write_wav(path: Path, data: bytes, *, rate: int = 8000, width: int = 2, channels: int = 1):
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(width)
        wav.setframerate(rate)
        wav.writeframes(data)
    return path


def samples() -> array.array:
    return array.array("h", CALL.read_bytes()[HEADER:])


# The recording it comes with.


@pytest.mark.parametrize("attempt", range(5))
async def test_the_transcript_is_the_same_each_time(example: ModuleType, attempt: int) -> None:
    assert await transcript(example) == TRANSCRIPT


async def test_a_slow_callback_changes_nothing(example: ModuleType) -> None:
    lines: list[str] = []
    bot = example.VoiceBot(lines.append)
    bot.state.add_change_callback(lambda: time.sleep(0.05))
    await bot.answer(example.read_recording())
    assert lines == TRANSCRIPT


async def test_what_happened_is_counted(example: ModuleType) -> None:
    bot = example.VoiceBot(lambda line: None)
    await bot.answer(example.read_recording())
    assert bot.state.value == "ended"
    assert bot.progress == 1.0
    assert bot.counts == {
        "frames": 377,
        "dropped": 0,
        "turns": 3,
        "progress": 4,
        "failed": 5,
        "timed out": 1,
        "cancelled": 1,
    }


async def test_no_thread_outlives_the_call(example: ModuleType) -> None:
    before = set(threading.enumerate())
    await transcript(example)
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio thread"):  # those wait for more work
            thread.join(timeout=5)  # the callback that blocked is let go when the call ends
            assert not thread.is_alive()


async def test_two_calls_at_once_do_not_mix(example: ModuleType) -> None:
    found: list[list[str]] = []

    async def call() -> None:
        found.append(await transcript(example))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        group.start_soon(call)
    assert found == [TRANSCRIPT, TRANSCRIPT]


# Other recordings.


async def test_of_stereo_both_channels_are_heard(example: ModuleType, tmp_path: Path) -> None:
    both = array.array("h", (sample for mono in samples() for sample in (mono, mono)))
    path = write_wav(tmp_path / "stereo.wav", both.tobytes(), channels=2)
    assert await transcript(example, path) == TRANSCRIPT


async def test_the_rate_does_not_matter(example: ModuleType, tmp_path: Path) -> None:
    twice = array.array("h", (sample for one in samples() for sample in (one, one)))
    path = write_wav(tmp_path / "fine.wav", twice.tobytes(), rate=16000)
    assert await transcript(example, path) == TRANSCRIPT


async def test_frames_hold_whole_samples(example: ModuleType, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "odd.wav", bytes(2 * 11025), rate=11025)
    frames = example.read_recording(path)
    assert {len(frame) for frame in frames[:-1]} == {2 * 220}
    assert b"".join(frames) == bytes(2 * 11025)


async def test_a_caller_who_says_nothing_hangs_up(example: ModuleType, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "silence.wav", bytes(16000))
    lines = await transcript(example, path)
    assert lines[:2] == [" 0.00  state idle -> listening", " 0.98  state listening -> ended"]
    counts = "frames 50, dropped 0, turns 0, progress 0, failed 0, timed out 0, cancelled 0"
    assert lines[2:] == [f" 0.98  the caller hung up: {counts}"]


async def test_a_call_may_end_in_the_middle_of_a_word(example: ModuleType, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "short.wav", samples()[: 8000 * 4].tobytes())
    lines = await transcript(example, path)
    assert lines[:-2] == [line for line in TRANSCRIPT if float(line[:5]) < 4.0]
    assert "the caller hung up: frames 200, dropped 0, turns 1" in lines[-1]


async def test_the_bot_may_be_interrupted(example: ModuleType, tmp_path: Path) -> None:
    """A caller who pauses for 0.7 seconds does not let it finish a reply."""
    loud, quiet = struct.pack("<2h", 8000, -8000) * 800, bytes(2 * 5600)
    path = write_wav(tmp_path / "hasty.wav", (loud + quiet) * 5)
    lines = await transcript(example, path)
    interrupted = lines.index(" 0.94  speech started")
    assert lines[interrupted + 1 : interrupted + 3] == [
        " 0.94  bot: It is 120",
        " 0.94  state speaking -> listening",
    ]
    assert "turns 3" in lines[-1]


# Files that are no recording.


def refusal(example: ModuleType, path: Path) -> str:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        example.read_recording(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kept", [0, 3, 11, 20, 35, 43])
def test_a_header_cut_off_is_told(example: ModuleType, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(CALL.read_bytes()[:kept])
    assert refusal(example, path).startswith("not a WAV file with PCM sound (")


@pytest.mark.parametrize("kept", [44, 45, 1044, 124_000])
def test_sound_cut_off_is_told(example: ModuleType, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(CALL.read_bytes()[:kept])
    there = (kept - HEADER) // 2
    assert refusal(example, path) == f"cut off, {there} of 62330 samples are there"


def test_a_length_far_beyond_the_file_is_told(example: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "boundless.wav"  # what a program writes that does not know the length yet
    path.write_bytes(CALL.read_bytes()[:40] + b"\xff\xff\xff\xff" + bytes(100))
    assert refusal(example, path) == "cut off, 50 of 2147483647 samples are there"


def test_no_sound_at_all_is_told(example: ModuleType, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "empty.wav", b"")
    assert refusal(example, path) == "cut off, 0 of 0 samples are there"


@pytest.mark.parametrize("width", [1, 3, 4])
def test_samples_of_other_widths_are_refused(
    example: ModuleType, tmp_path: Path, width: int
) -> None:
    path = write_wav(tmp_path / "wide.wav", bytes(width * 100), width=width)
    assert refusal(example, path) == f"{8 * width} bits at 8000 Hz; convert it to 16 bits"


def test_compressed_sound_is_refused(example: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "law.wav"
    data = bytearray(CALL.read_bytes())
    data[20:22] = (7).to_bytes(2, "little")  # mu-law
    path.write_bytes(data)
    assert refusal(example, path) == "not a WAV file with PCM sound (unknown format: 7)"


def test_a_file_that_is_not_there_is_an_os_error(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        example.read_recording(tmp_path / "nowhere.wav")


@given(at=st.integers(0, HEADER - 1), byte=st.integers(0, 255))
def test_a_damaged_header_raises_nothing_but_value_errors(
    example: ModuleType, tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.wav"
    data = bytearray(CALL.read_bytes()[:2000])
    data[40:44] = (2000 - HEADER).to_bytes(4, "little")
    data[at] = byte
    path.write_bytes(data)
    try:
        frames = example.read_recording(path)
    except ValueError:
        return
    assert all(frames)
