"""Families: metric families of one program, with its prefix and bounded labels, as Prometheus text.

There are no global collectors: each scrape builds its families from plain numbers. Names follow the conventions of
Prometheus (base units, ``_total``); ``docs/metrics.md`` describes each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from certctrl.model.duration import Duration

MAX_LABEL = 200


class Families:
    """Makes the families of one program."""

    def __init__(self, prefix: str) -> None:
        """``prefix`` begins all names."""
        self._prefix = prefix

    def gauge(self, name: str, about: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
        """Return a gauge with the values by labels."""
        rows = list(samples)
        family = GaugeMetricFamily(f"{self._prefix}_{name}", about, labels=list(rows[0][0]) if rows else None)
        for labels, value in rows:
            family.add_metric([_label(text) for text in labels.values()], value)
        return family

    def one_of(self, name: str, about: str, label: str, names: Iterable[str], present: str) -> Metric:
        """Return a gauge that is 1 for the present one of some names."""
        return self.gauge(name, about, [({label: each}, int(each == present)) for each in names])

    def counter(self, name: str, about: str, label: str, counts: Mapping[str, int]) -> Metric:
        """Return a counter with one label."""
        return self.counters(name, about, (label,), (((key,), count) for key, count in counts.items()))

    def counters(
        self, name: str, about: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[str, ...], int]]
    ) -> Metric:
        """Return a counter with several labels."""
        family = CounterMetricFamily(f"{self._prefix}_{name}", about, labels=list(labels))
        for key, count in sorted(counts):
            family.add_metric([_label(text) for text in key], count)
        return family

    def plain_counter(self, name: str, about: str, count: int) -> Metric:
        """Return a counter without labels."""
        return CounterMetricFamily(f"{self._prefix}_{name}", about, value=count)

    def histogram(self, name: str, about: str, duration: Duration) -> Metric:
        """Return a histogram without labels."""
        family = HistogramMetricFamily(f"{self._prefix}_{name}", about)
        family.add_metric([], _buckets(duration), duration.total)
        return family

    def histograms(self, name: str, about: str, label: str, durations: Mapping[str, Duration]) -> Metric:
        """Return a histogram with one label."""
        family = HistogramMetricFamily(f"{self._prefix}_{name}", about, labels=[label])
        for key, duration in sorted(durations.items()):
            family.add_metric([_label(key)], _buckets(duration), duration.total)
        return family


class _Once(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def exposition(families: Iterable[Metric]) -> bytes:
    """Return the families as UTF-8 text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(families))
    return generate_latest(registry)


def _buckets(duration: Duration) -> list[tuple[str, float]]:
    bounds = [(str(bound), float(count)) for bound, count in zip(duration.bounds, duration.counts, strict=True)]
    return [*bounds, ("+Inf", float(duration.count))]


def _label(text: str) -> str:
    """Return a label value of limited length for any text from elsewhere."""
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
