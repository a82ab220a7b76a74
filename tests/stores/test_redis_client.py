import pytest

from callbackkit.errors import StoreError, StoreUnavailableError
from callbackkit.stores.redis_client import refusal

# What Redis 6.2.14 answers where nothing can be written.
OLD = "Error running script (call to f_678359bdb304d40f): @user_script:91: @user_script: 91: "


@pytest.mark.parametrize(
    "text",
    [
        "READONLY You can't write against a read only replica.",
        f"{OLD}-READONLY You can't write against a read only replica.",
        f"ERR {OLD}-READONLY You can't write against a read only replica.",
    ],
)
def test_what_passes_is_told_as_that_wherever_the_server_says_it_was_raised(text: str) -> None:
    error = refusal(text)
    assert type(error) is StoreUnavailableError
    assert str(error) == "Redis refuses: READONLY You can't write against a read only replica."


def test_what_does_not_pass_is_another_error() -> None:
    error = refusal(f"{OLD}WRONGTYPE Operation against a key holding the wrong kind of value")
    assert type(error) is StoreError
    assert str(error).startswith("Redis refuses: WRONGTYPE ")
