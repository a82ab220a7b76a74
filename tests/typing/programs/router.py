"""Handlers found by what a payload says of itself."""

from typing import Any

from callbackkit import EventRouter


def handle(payload: dict[str, Any]) -> None:
    print(payload)


def kind(payload: Any) -> str:
    return str(payload["kind"])


router = EventRouter(key="type")
EventRouter(key=kind)
EventRouter(key=3)  # E
router.register_handler("start", handle)
router.register_handler("start", "handle")  # E
router.default(handle)


@router.route("media", "mark")
async def on_media(payload: dict[str, Any]) -> int:
    return len(payload)


telephony = router.channel("telephony")
telephony.register_handler("hangup", handle)


async def main() -> None:
    await router.handle_event({"type": "start"})
    count: int = await on_media({})
    wrong: str = await on_media({})  # E
    print(count, wrong)
