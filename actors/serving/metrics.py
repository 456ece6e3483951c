"""Numbers for Prometheus, at /metrics."""

import time

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

    def observe(run: Run, event: Event | None) -> None:
        if event is None:
            over.labels(run.status).inc()
        elif isinstance(event, SectionRead):
            sections.inc()
            tokens.labels("prompt").inc(event.prompt_tokens)
            tokens.labels("response").inc(event.response_tokens)
            if run.read == 1:
                first.observe(time.time() - run.created)
        else:
            answer.observe(event.seconds)

    readings.observers.append(observe)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
