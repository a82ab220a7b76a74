"""A value whose changes are told."""

from typing import Literal, assert_type

from callbackkit import ANY, ObservableState

Status = Literal["idle", "running", "done"]


def changed(old: int, new: int) -> None:
    print(old, new)


async def changed_async(old: int, new: int) -> None:
    print(old, new)


def changed_text(old: str, new: str) -> None:
    print(old, new)


state = ObservableState(1)
assert_type(state, ObservableState[int])
assert_type(state.value, int)
state.set(2)
state.set("two")  # E
state.add_change_callback(changed)
state.add_change_callback(changed_async)
state.add_change_callback(changed, old=ANY, new=3)
state.add_change_callback(changed_text)  # E
state.add_change_callback(changed, new="three")  # E

status = ObservableState[Status]("idle")
status.set("done")
status.set("gone")  # E
assert_type(status.value, Status)


async def main() -> None:
    await state.aset(4)
    await state.aset("four")  # E
