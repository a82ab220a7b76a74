"""What a probe says of a library: a word for the table and a sentence for the page."""

import attrs

SURVIVES = "survives"
STOPS = "stops"
HANGS = "hangs"
CRASHES = "crashes"
NOT_OFFERED = "not offered"


@attrs.frozen
class Verdict:
    """What became of a library in a probe.

    Attributes:
        word: One of few, compared by the suite.
        detail: What happened, in a line.
    """

    word: str
    detail: str = ""


def survives(detail: str = "") -> Verdict:
    """Say that all went as the probe asks."""
    return Verdict(SURVIVES, detail)


def judged(*checks: tuple[bool, str, str]) -> Verdict:
    """Return the verdict of the first check that failed.

    Args:
        *checks: What has to hold, and word and detail if it does not.
    """
    for holds, word, detail in checks:
        if not holds:
            return Verdict(word, detail)
    return survives()
