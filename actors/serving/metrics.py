"""Numbers for Prometheus, at /metrics."""

import time
from collections import Counter as Sum

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.responses import Response

from actors.serving.readings import Readings, Run
from pipeline.asking.session import Event, SectionRead

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class _Running(Collector):
    def __init__(self, readings: Readings):
        self._readings = readings

    def collect(self):
        yield GaugeMetricFamily("palimpsest_readings_running", "readings in progress", value=self._readings.count())


def add_routes(app: FastAPI, readings: Readings) -> None:
    """Add /metrics, and count what the readings do."""
    registry = CollectorRegistry()
    registry.register(_Running(readings))
    over = Counter("palimpsest_readings", "readings that are over", ["status"], registry=registry)
    sections = Counter("palimpsest_sections", "sections that were read", registry=registry)
    tokens = Counter("palimpsest_tokens", "tokens of prompts and responses", ["kind"], registry=registry)
    first = Histogram(
        "palimpsest_first_memory_seconds", "seconds to the first memory", buckets=SECONDS, registry=registry
    )
    answer = Histogram("palimpsest_answer_seconds", "seconds to the answer", buckets=SECONDS, registry=registry)

    counted: dict[str, Sum[str]] = {}  # tokens of the sections of the readings in progress, by kind

    def observe(run: Run, event: Event | None) -> None:
        if event is None:
            over.labels(run.status).inc()
            counted.pop(run.id, None)
            return
        found = Sum(prompt=event.prompt_tokens, response=event.response_tokens)
        if isinstance(event, SectionRead):
            sections.inc()
            counted[run.id] = counted.get(run.id, Sum()) + found
            if run.read == 1:
                first.observe(time.time() - run.created)
        else:  # with the tokens of all conversations
            found -= counted.get(run.id, Sum())
            answer.observe(event.seconds)
        for kind, count in found.items():
            tokens.labels(kind).inc(count)

    readings.observers.append(observe)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
