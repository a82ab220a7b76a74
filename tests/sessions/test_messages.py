"""Who listens to what the clients of sessions send."""

import logging

import pytest

from callbackkit import Event, MemoryStore
from callbackkit.sessions.messages import Messages, content_of
from callbackkit.stores.base import NewSession, SessionRecord


def message(session_id: str) -> Event:
    return Event.of("client.message", {"text": "hi"}, session_id=session_id)


async def test_a_message_reaches_who_listens_to_its_session():
    messages = Messages()
    heard: list[tuple[str, str]] = []

    async def hear(event: Event) -> None:
        heard.append(("first", event.session_id))

    messages.register("a", hear)
    messages.register("a", lambda event: heard.append(("second", event.session_id)))
    messages.register("b", lambda event: heard.append(("other", event.session_id)))
    await messages.call(message("a"))
    await messages.call(message("never"))
    assert heard == [("first", "a"), ("second", "a")]


async def test_one_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture):
    messages = Messages()
    heard: list[str] = []

    def fails(_event: Event) -> None:
        raise ValueError("broken")

    messages.register("a", fails)
    messages.register("a", lambda event: heard.append(event.id))
    with caplog.at_level(logging.ERROR):
        await messages.call(message("a"))
    assert heard == ["test-1"]
    assert "broken" in caplog.text


async def test_what_is_cancelled_or_forgotten_hears_nothing():
    messages = Messages()
    heard: list[str] = []
    registration = messages.register("a", heard.append)
    messages.register("b", heard.append)
    assert len(messages) == 2
    assert registration.cancel()
    assert not registration.cancel()
    messages.forget("b")
    messages.forget("never")
    await messages.call(message("a"))
    await messages.call(message("b"))
    assert (heard, len(messages)) == ([], 0)


def test_what_is_no_callable_is_refused():
    with pytest.raises(TypeError, match="callable"):
        Messages().register("a", None)  # type: ignore[arg-type]


class AskedStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def get_session(self, session_id: str) -> SessionRecord:
        self.asked.append(session_id)
        return await super().get_session(session_id)


async def test_sessions_that_ended_elsewhere_are_forgotten_a_few_at_a_time():
    store, messages = AskedStore(), Messages()
    await messages.forget_gone(store)
    names = [f"s{number:02}" for number in range(50)]
    for name in names:
        await store.create_session(NewSession(id=name, token_hash=b"hash"))
        messages.register(name, len)
    await store.end_session("s03", linger=100)
    await store.delete_session("s30", linger=100)
    for _ in range(4):
        before = len(store.asked)
        await messages.forget_gone(store)
        assert len(store.asked) - before <= 20
    assert set(store.asked) == set(names)
    assert len(messages) == 48
    # And from the first one on again.
    await store.end_session("s10", linger=100)
    for _ in range(4):
        await messages.forget_gone(store)
    assert len(messages) == 47


@pytest.mark.parametrize("value", ["hi", 5, None, [1, 2], True])
def test_an_object_is_the_data_and_anything_else_stands_in_it(value: object):
    assert content_of({"a": value}) == {"a": value}
    assert content_of(value) == {"message": value}
