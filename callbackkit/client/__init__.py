"""Following a session from another process, imported when first used."""

from typing import TYPE_CHECKING, Final

__all__ = ["Backoff", "Events", "follow"]

if TYPE_CHECKING:
    from callbackkit.client.backoff import Backoff
    from callbackkit.client.following import Events, follow

# Lazy because the command line looks at what is installed before it asks for more.
_HOMES: Final = {
    "Backoff": "callbackkit.client.backoff",
    "Events": "callbackkit.client.following",
    "follow": "callbackkit.client.following",
}

if not TYPE_CHECKING:  # a checker would take a visible __getattr__ for "any name exists"

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """List the lazy names too."""
        return sorted({*globals(), *__all__})
