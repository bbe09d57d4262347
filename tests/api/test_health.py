"""What needs no key: liveness, readiness, metrics, the root and the OpenAPI document."""

import socket
import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI

from api.serve import run_api
from runtime.errors import NotReachableError, PortInUseError
from runtime.settings import Settings
from tests.api.live_server import ROOT

pytestmark = pytest.mark.anyio


async def test_health_readiness_root_and_metrics_need_no_key(anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get("/healthz")).json() == {"status": "ok"}
    ready = await anonymous.get("/readyz")
    assert ready.status_code == 200
    dependencies = ready.json()["dependencies"]
    assert {name: one["status"] for name, one in dependencies.items()} == {
        "postgres": "ok",
        "redis": "ok",
        "search": "down",
    }
    assert "search-server" in dependencies["search"]["detail"]
    assert (await anonymous.get("/")).json()["links"]["openapi"] == "/openapi.json"
    await anonymous.get("/nothing/at/all")
    text = (await anonymous.get("/metrics")).text
    counted = 'xnai_http_requests_total{method="GET",route="/healthz",status="200"}'
    assert counted in text
    assert 'xnai_queue_depth{pool="embed",state="queued"} 0.0' in text
    assert "/nothing/at/all" not in text


async def test_without_postgres_the_api_lives_but_is_not_ready(
    app: FastAPI, anonymous: httpx.AsyncClient
) -> None:
    await app.state.services.postgres.close()
    assert (await anonymous.get("/healthz")).status_code == 200
    ready = await anonymous.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["status"] == "down"
    assert int(ready.headers["retry-after"]) > 0


async def test_no_page_of_the_framework_is_served(anonymous: httpx.AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert (await anonymous.get(path)).status_code == 404


async def test_every_operation_is_documented(app: FastAPI) -> None:
    document = app.openapi()
    assert document["openapi"].startswith("3.1")
    names = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["operationId"] not in names, where
            names.add(operation["operationId"])
            assert operation["description"], where
            if path.startswith("/v1"):
                assert operation["security"] == [{"ApiKey": []}], where
                assert operation["responses"].keys() >= {"400", "401", "403", "422", "503"}, where
            if "{" in path.replace("{name}", "").replace("{key}", "") and path.startswith("/v1"):
                assert "404" in operation["responses"], where
            for status, response in operation["responses"].items():
                if status[0] in "45" and path.startswith("/v1"):
                    assert set(response["content"]) == {"application/problem+json"}, where


async def test_a_port_in_use_is_one_clear_error(settings: Settings) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = settings.model_copy(update={"port": owner.getsockname()[1]})
        with pytest.raises(PortInUseError, match="XNAI_PORT"):
            await run_api(taken)


async def test_no_postgres_is_one_clear_error(settings: Settings) -> None:
    url = "postgresql://xnai@127.0.0.1:1/xnai"
    away = settings.model_copy(update={"port": 0, "database_url": url, "connect_timeout_s": 0.2})
    with pytest.raises(NotReachableError):
        await run_api(away)


def test_the_api_loads_no_engine_and_no_crawler() -> None:
    heavy = ("numpy", "onnxruntime", "faiss", "ctransformers", "xllamacpp", "tokenizers")
    names = (*heavy, "crawl", "engines")
    code = f"import sys, api.serve; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
