"""What every test shares: both event loops, how hard Hypothesis looks, no quiet skips in CI."""

import gc
import os
from collections.abc import Generator

import hypothesis
import pytest

import callbackkit

# A run of pytest inside this process forgets, at its end, the modules that it was the first to
# import; so that none of ours comes to exist twice, they are all imported here.
for name in callbackkit.__all__:
    getattr(callbackkit, name)

hypothesis.settings.register_profile("fast", deadline=None, max_examples=50)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile(
    "torture",
    deadline=None,
    max_examples=1_000,
    stateful_step_count=100,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci() else "fast")
)


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop an async test runs on: each one in turn."""
    backend: str = request.param
    return backend


@pytest.fixture
def without_collection() -> Generator[None, None, None]:
    """Nothing is collected meanwhile: near the recursion limit any ``__del__`` would fail."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true, a skipped test marked ``real_server`` has failed."""
    report = yield
    if report.skipped and in_ci() and item.get_closest_marker("real_server"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs a real server, and CI=true allows no skip"
    return report
