"""The suite for transports: it passes those that keep the laws and names the law one breaks."""

import json
import sys

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.transport import Transport
from callbackkit.errors import ConfigError
from callbackkit.testing.transport_bench import Asked
from callbackkit.testing.transports import check_transport

BACKENDS = ["asyncio", "trio"]


class Shelf:
    """A destination: what arrived, and whether it is out of order."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.is_broken = False

    def put(self, *ids: str) -> None:
        if self.is_broken:
            raise OSError("refused")
        self.ids.extend(ids)

    def breaks(self, is_broken: bool) -> None:
        self.is_broken = is_broken


class Good(Transport):
    """Keeps every law; what is broken below is one line each."""

    name = "good"

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.is_open = False

    async def start(self) -> None:
        self.is_open = True

    async def aclose(self) -> None:
        self.is_open = False

    async def send(self, delivery) -> None:
        assert self.is_open
        await checkpoint()
        await self.put(delivery)
        await checkpoint()

    async def put(self, delivery) -> None:
        self.shelf.put(*(event.id for event in delivery.events))


def check(kind: type[Transport], *, examples: int = 15, **options) -> None:
    shelf = Shelf()
    check_transport(
        lambda: kind(shelf),  # type: ignore[call-arg]
        lambda: shelf.ids,
        break_destination=shelf.breaks,
        examples=examples,
        **{"patience": 5.0, **options},
    )


# Good ones.


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transport_that_keeps_the_laws_passes(backend) -> None:
    check(Good, backend=backend)


def test_a_destination_that_knows_repeats_by_their_id_is_all_right() -> None:
    class Deduping(Good):
        async def put(self, delivery) -> None:
            self.shelf.put(*(e.id for e in delivery.events if e.id not in self.shelf.ids))

    check(Deduping)


def test_a_transport_to_a_file_passes(tmp_path) -> None:
    path = tmp_path / "events.jsonl"

    class FileTransport(Transport):
        name = "file"

        async def send(self, delivery) -> None:
            lines = [json.dumps({"id": e.id, "data": e.data}) + "\n" for e in delivery.events]
            async with await anyio.open_file(path, "a") as file:
                await file.write("".join(lines))

    def received() -> list[str]:
        if not path.exists():
            return []
        return [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()]

    check_transport(FileTransport, received, examples=3)


async def make_good(shelf: Shelf) -> Transport:
    await checkpoint()
    return Good(shelf)


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_given_may_be_asynchronous(backend) -> None:
    shelf = Shelf()

    async def received() -> list[str]:
        return shelf.ids

    async def breaks(is_broken: bool) -> None:
        shelf.is_broken = is_broken

    check_transport(
        lambda: make_good(shelf), received, break_destination=breaks, backend=backend, examples=3
    )


def test_what_the_transport_is_told_goes_by_the_options_or_the_whole_configuration() -> None:
    class Picky(Good):
        def check(self, config) -> None:
            if "room" not in config.options:
                raise ConfigError("options.room", "is missing")

        async def put(self, delivery) -> None:
            assert delivery.options["room"] == "a"
            await super().put(delivery)

    check(Picky, options={"room": "a"}, examples=3)
    with pytest.raises(AssertionError, match=r"ConfigError: options\.room: is missing"):
        check(Picky)

    class Wants(Picky):
        async def put(self, delivery) -> None:
            assert delivery.config.colour == "red"
            await super().put(delivery)

    class Full(Asked):
        colour = "red"

    check(Wants, config=Full(delivery_method="good", options={"room": "a"}), examples=3)


# Bad ones, each by a line or two.


class Early(Good):
    """Returns before the destination has anything."""

    async def aclose(self) -> None:
        return

    async def send(self, delivery) -> None:
        self.late = [*getattr(self, "late", []), delivery]
        if len(self.late) > 1:
            await self.put(self.late.pop(0))


class Backwards(Good):
    async def put(self, delivery) -> None:
        self.shelf.put(*(event.id for event in reversed(delivery.events)))


class FirstOnly(Good):
    async def put(self, delivery) -> None:
        self.shelf.put(delivery.event.id)


class Doubling(Good):
    async def put(self, delivery) -> None:
        await super().put(delivery)
        await super().put(delivery)


class Silent(Good):
    """Takes an outage for a success."""

    async def put(self, delivery) -> None:
        try:
            await super().put(delivery)
        except OSError:
            pass


class Breaking(Good):
    """Is of no use any more after an outage."""

    async def send(self, delivery) -> None:
        try:
            await super().send(delivery)
        except OSError:
            self.is_open = False
            raise


class Fragile(Good):
    """Is of no use any more when a send was cancelled."""

    async def send(self, delivery) -> None:
        is_done = False
        try:
            await super().send(delivery)
            is_done = True
        finally:
            self.is_open = is_done


class Swallowing(Good):
    """Takes a cancellation for a success."""

    async def send(self, delivery) -> None:
        try:
            await super().send(delivery)
        except anyio.get_cancelled_exc_class():
            return


class Once(Good):
    """Refuses what it has seen."""

    async def put(self, delivery) -> None:
        if delivery.event.id in self.shelf.ids:
            raise ValueError("a repeat")
        await super().put(delivery)


class Startled(Good):
    async def start(self) -> None:
        assert not self.is_open, "started twice"
        self.is_open = True


class Clumsy(Good):
    async def aclose(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False


class Narrow(Good):
    """Can't carry a line break."""

    async def put(self, delivery) -> None:
        assert all("\r" not in str(event.data.get("text")) for event in delivery.events)
        await super().put(delivery)


class OneAtATime(Good):
    is_busy = False

    async def send(self, delivery) -> None:
        assert not self.is_busy, "busy"
        self.is_busy = True
        try:
            await super().send(delivery)
        finally:
            self.is_busy = False


class Fickle(Good):
    """Names another endpoint each time."""

    count = 0

    def endpoint(self, session_id, config) -> str:
        self.count += 1
        return f"{session_id}:{self.count}"


class Unnamed(Good):
    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.name = "Not A Name"


class Hanging(Good):
    async def put(self, delivery) -> None:
        if len(delivery.events) > 1:
            await anyio.sleep_forever()
        await super().put(delivery)


class Forgetful(Good):
    """Loses what failed before: only a sequence of faults comes to that."""

    async def put(self, delivery) -> None:
        if delivery.attempt < 2 or delivery.is_redrive:
            await super().put(delivery)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Early, "When send.. returns, the destination has the event"),
        (Backwards, "A batch arrives whole and in order"),
        (FirstOnly, "A batch arrives whole and in order"),
        (Doubling, "When send.. returns"),
        (Silent, "While the destination is down"),
        (Breaking, "While the destination is down"),
        (Fragile, "Cancelled at any point"),
        (Swallowing, "Cancelled at any point"),
        (Once, "The same delivery can be sent again"),
        (Startled, "started twice"),
        (Clumsy, "closed twice"),
        (Narrow, "What an event holds does not matter"),
        (OneAtATime, "As many as ``concurrency`` are sent at the same time"),
        (Fickle, "names the same endpoint"),
        (Unnamed, "Unnamed.name must be"),
        (Hanging, "it takes for ever"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "law",
)
def test_a_transport_that_breaks_a_law_is_found_and_the_law_named(kind, law, backend) -> None:
    with pytest.raises(AssertionError, match=law):
        check(kind, backend=backend, patience=0.5, examples=40)


def test_faults_in_a_row_find_what_no_single_send_shows() -> None:
    with pytest.raises(AssertionError, match="Whatever goes wrong around it, every event arrives"):
        check(Forgetful, patience=0.5, examples=40)


def test_what_is_no_transport_is_named() -> None:
    with pytest.raises(AssertionError, match="which is no Transport"):
        check_transport(lambda: object(), list)  # type: ignore[arg-type,return-value]


def test_without_hypothesis_it_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "callbackkit.testing.transport_rounds", raising=False)
    with pytest.raises(ImportError, match=r"callbackkit\[testing\]"):
        check(Good)
