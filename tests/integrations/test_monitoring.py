"""The alert rules and the dashboard of the documentation speak of metrics that exist."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Sample

from callbackkit import CallbackManager, Gone, Rejected, RetryPolicy, StoreError, Transport
from callbackkit.integrations.prometheus import CallbackKitCollector
from tests.integrations.rig import Failing, until_settled

FILES = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = yaml.safe_load((FILES / "alerts.yaml").read_text("utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
BOARD = json.loads((FILES / "grafana-dashboard.json").read_text("utf-8"))
PANELS = BOARD["panels"]

EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
}

# What Prometheus itself says of each series.
OF_PROMETHEUS = {"job", "instance"}
FUNCTIONS = {"absent", "delta", "deriv", "histogram_quantile", "increase", "max", "rate", "sum"}
WORDS = {"and"}


class Doomed(Transport):
    """Has every outcome that an attempt can have."""

    name = "doomed"
    timeout = 0.02
    retry = RetryPolicy(schedule=(0.0, 0.0), jitter=0.0)
    breaker = None

    async def send(self, delivery) -> None:
        match delivery.event.data["progress"], delivery.attempt:
            case 0.1, 1:
                raise ConnectionError("away")
            case 0.1, 2:
                await anyio.sleep_forever()
            case 0.15, _:
                raise Rejected("malformed")
            case 0.2, _:
                raise Gone("never")


@pytest.fixture(scope="module")
def scraped() -> list[Sample]:
    """What is scraped of a process where everything has happened."""
    registry, store = CollectorRegistry(), Failing()

    async def work() -> list[Sample]:
        async with CallbackManager(store=store, transports=[Doomed()]) as manager:
            CallbackKitCollector(manager, registry)
            session = await manager.create_session({"delivery_method": "doomed"})
            await session.progress(0.1)
            await session.progress(0.15)
            await session.progress(0.2)
            await until_settled(session)
            store.on_append = StoreError("full")
            with pytest.raises(StoreError):
                await session.progress(0.3)
            await manager.stats()
            return [sample for metric in registry.collect() for sample in metric.samples]

    return anyio.run(work)


def selectors(expression: str) -> Iterator[tuple[str, Mapping[str, tuple[str, str]]]]:
    """Yield the metrics of an expression, each with its matchers: label -> (operator, value)."""
    for name, _, inner in re.findall(r"\b(callbackkit_\w+)(\{(.*?)\})?", expression):
        matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"(.*?)"', inner)
        yield name, {label: (operator, value) for label, operator, value in matchers}


def fits(sample: Sample, name: str, matchers: Mapping[str, tuple[str, str]]) -> bool:
    return sample.name == name and all(
        label in OF_PROMETHEUS or is_matched(sample.labels.get(label, ""), *matcher)
        for label, matcher in matchers.items()
    )


def is_matched(value: str, operator: str, wanted: str) -> bool:
    found = re.fullmatch(wanted, value) is not None if "~" in operator else value == wanted
    return found != operator.startswith("!")


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_series_of_an_expression_is_exported(expression: str, scraped) -> None:
    found = list(selectors(expression))
    assert found
    for name, matchers in found:
        assert [sample for sample in scraped if fits(sample, name, matchers)], name
        for label, (operator, value) in matchers.items():
            # Each way of a choice, not just one of them.
            for way in value.split("|") if label not in OF_PROMETHEUS else ():
                assert [each for each in scraped if fits(each, name, {label: (operator, way)})], way


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_what_is_grouped_by_is_a_label_of_what_is_grouped(expression: str, scraped) -> None:
    labels = {
        label
        for name, _ in selectors(expression)
        for sample in scraped
        if sample.name == name
        for label in sample.labels
    }
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", grouped)) <= labels | OF_PROMETHEUS


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_has_no_other_words(expression: str) -> None:
    """A metric with a slip of the pen in its prefix would not be found above."""
    bare = re.sub(r'"[^"]*"|\{.*?\}|\[[^\]]*\]|\bby \([^)]*\)', "", expression)
    names = {name for name, _ in selectors(expression)}
    assert set(re.findall(r"[a-zA-Z_]\w*", bare)) <= names | FUNCTIONS | WORDS
    assert bare.count("(") == bare.count(")")


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_figures_of_the_store_are_never_summed_over_processes(expression: str) -> None:
    """All of them export the same; only what is of one process has a sum."""
    for name, _ in selectors(expression):
        shared = re.search(r"_(emit|attempt)_seconds|_readers|_changes|_letters", name) is None
        for sum_of in re.findall(rf"sum[^()]*(?:\([^()]*\) )?\((?:\w+\()?{name}\b", expression):
            assert not shared, sum_of


def test_every_metric_is_on_the_dashboard(scraped) -> None:
    shown = {name for panel in PANELS for each in panel["targets"] for name in names_in(each)}
    exported = {re.sub(r"_(bucket|sum|count)$", "", sample.name) for sample in scraped}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == exported


def names_in(target: Mapping[str, Any]) -> list[str]:
    return [name for name, _ in selectors(target["expr"])]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_happened(rule) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}
    told = " ".join(rule["annotations"].values())
    grouped = {
        label
        for found in re.findall(r"\bby \((.*?)\)", rule["expr"])
        for label in re.split(r",\s*", found)
    }
    assert set(re.findall(r"\$labels\.(\w+)", told)) <= grouped


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (column, row)
        for panel in PANELS
        for at in [panel["gridPos"]]
        for column in range(at["x"], at["x"] + at["w"])
        for row in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24


def test_the_dashboard_asks_for_its_data_source() -> None:
    """An import into another Grafana has other ids of data sources."""
    variables = {each["name"] for each in BOARD["templating"]["list"]}
    assert variables == {"datasource", "job"}
    assert set(re.findall(r'"uid": "(.*?)"', json.dumps(BOARD))) == {"${datasource}", BOARD["uid"]}
    assert all("datasource" in each for panel in PANELS for each in [panel, *panel["targets"]])
    used = set(re.findall(r"\$(\w+)", " ".join(EXPRESSIONS.values())))
    assert used <= variables | {"__rate_interval"}
