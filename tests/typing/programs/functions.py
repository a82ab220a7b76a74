"""Functions called by name."""

from collections.abc import Mapping
from typing import Any, assert_type

from callbackkit import FunctionRegistry

functions = FunctionRegistry()


@functions.register
def add(arguments: Mapping[str, Any]) -> int:
    return int(arguments["a"]) + int(arguments["b"])


@functions.register
async def look_up(arguments: dict[str, Any]) -> str:
    return str(arguments["name"])


assert_type(add({"a": 1, "b": 2}), int)
add(3)  # E
functions.register_function("add", add)
functions.register_function("plus", "add")  # E
functions.register_function(3, add)  # E
functions.unregister_function("add")


def is_final(value: Any) -> bool:
    return bool(value == "bye")


functions.on_result(is_final, print)
functions.on_result("bye", print)  # E


async def main() -> None:
    await functions.call("add", {"a": 1, "b": 2})
    await functions.call("add", '{"a": 1, "b": 2}')
    await functions.call("add", 3)  # E
    functions.start("call-1", "add")
    functions.feed("call-1", '{"a": 1, ')
    functions.feed("call-1", b"")  # E
    await functions.finish("call-1")
