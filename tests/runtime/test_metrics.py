"""Observing many amounts at once is the same as observing each."""

from prometheus_client import CollectorRegistry, Histogram

from runtime.metrics import observe_all


def _histogram() -> tuple[CollectorRegistry, Histogram]:
    registry = CollectorRegistry()
    return registry, Histogram("seconds", "Of a test.", registry=registry, buckets=(0.1, 1.0, 10.0))


def _samples(registry: CollectorRegistry) -> list[tuple[str, str | None, float]]:
    return [
        (sample.name, sample.labels.get("le"), sample.value)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def test_many_amounts_are_observed_as_each_would_be() -> None:
    amounts = [0.0, 0.1, 0.25, 1.0, 1.5, 10.0, 11.0, 100.0, 0.5]
    one_by_one, single = _histogram()
    for amount in amounts:
        single.observe(amount)
    at_once, many = _histogram()
    observe_all(many, amounts)
    assert _samples(at_once) == _samples(one_by_one)


def test_nothing_observed_changes_nothing() -> None:
    registry, histogram = _histogram()
    before = _samples(registry)
    observe_all(histogram, [])
    assert _samples(registry) == before
