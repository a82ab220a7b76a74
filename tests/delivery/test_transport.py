"""What a transport may be, and what it is handed."""

import json
import math

import pytest

from callbackkit.delivery.policy import RetryPolicy
from callbackkit.delivery.transport import Delivery, Transport, by_name
from callbackkit.events import Event, Position
from tests.delivery.rig import Config


class Silent(Transport):
    name = "silent"

    async def send(self, delivery: Delivery) -> None: ...


def event(seq: int) -> Event:
    return Event(Position("e", seq), "progress", 1, "s", b"{}", json.loads)


def test_a_delivery_shows_no_configuration() -> None:
    delivery = Delivery(
        id="s_e_1",
        events=(event(1), event(2)),
        attempt=1,
        session_id="s",
        config=Config(options={"password": "hunter2"}),
    )
    assert delivery.options == {"password": "hunter2"}
    assert "hunter2" not in repr(delivery)
    assert delivery.event is delivery.events[0]
    assert not delivery.is_redrive


async def test_a_transport_needs_nothing_but_a_name_and_send() -> None:
    transport = Silent()
    assert transport.endpoint("s1", Config()) == "silent:s1"
    transport.check(Config())
    await transport.start()
    await transport.aclose()
    assert by_name([transport]) == {"silent": transport}


def test_send_has_to_be_written() -> None:
    class Mute(Transport):
        name = "mute"

    with pytest.raises(TypeError, match="send"):
        Mute()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        ("name", 3, TypeError),
        ("name", "", ValueError),
        ("name", "Slack", ValueError),
        ("name", "a b", ValueError),
        ("name", "a" * 65, ValueError),
        ("timeout", None, TypeError),
        ("timeout", True, TypeError),
        ("timeout", 0, ValueError),
        ("timeout", math.inf, ValueError),
        ("timeout", 10**400, ValueError),
        ("timeout", math.nan, ValueError),
        ("retry", (1, 2), TypeError),
        ("breaker", False, TypeError),
        ("concurrency", 2.0, TypeError),
        ("concurrency", 0, ValueError),
        ("only_when_named", "progress", TypeError),
        ("only_when_named", 7, TypeError),
        ("only_when_named", {7}, TypeError),
    ],
)
def test_a_wrong_attribute_is_named_when_the_class_is_made_and_when_it_is_used(
    attribute, value, error
) -> None:
    with pytest.raises(error, match=f"Wrong.{attribute} must"):
        type("Wrong", (Silent,), {attribute: value})
    transport = Silent()
    setattr(transport, attribute, value)
    with pytest.raises(error, match=f"Silent.{attribute} must"):
        by_name([transport])


def test_a_property_is_looked_at_when_there_is_an_instance() -> None:
    class Late(Silent):
        @property
        def timeout(self) -> float:  # type: ignore[override]
            return -1.0

    with pytest.raises(ValueError, match=r"Late\.timeout must"):
        by_name([Late()])


def test_a_transport_without_a_name_is_refused() -> None:
    class Nameless(Transport):
        async def send(self, delivery: Delivery) -> None: ...

    with pytest.raises(TypeError, match="Nameless has no name"):
        by_name([Nameless()])


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two transports are named 'silent'"):
        by_name([Silent(), Silent()])


def test_what_is_no_transport_is_refused_and_a_class_is_told_apart() -> None:
    with pytest.raises(TypeError, match="is no Transport"):
        by_name([object()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="is a class; give an instance"):
        by_name([Silent])  # type: ignore[list-item]


def test_a_transport_may_set_its_own_attributes() -> None:
    class Tuned(Silent):
        def __init__(self, timeout: float) -> None:
            self.timeout = timeout
            self.retry = RetryPolicy.exponential()
            self.breaker = None

    assert by_name([Tuned(3)])["silent"].timeout == 3
