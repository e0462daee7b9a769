"""Catalog models without the network: a catalog of our own behind the SDK's real code."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.errors import CatalogModelNotFound, DownloadFailed
from foundry_lab.settings import BUNDLED_MODEL_DIR


def entry(alias: str) -> dict[str, Any]:
    """Describe a model as Microsoft's catalog does, with what the SDK needs of it."""
    name = f"{alias}-instruct-generic-cpu"
    variant = {
        "parents": [{"assetId": f"azureml://registries/lab/models/{alias}/versions/1"}],
        "variantMetadata": {
            "modelType": "ONNX",
            "device": "cpu",
            "executionProvider": "CPUExecutionProvider",
            "fileSizeBytes": 4_000_000,
        },
    }
    return {
        "assetId": f"azureml://registries/lab/models/{name}/versions/1",
        "entityId": alias,
        "id": f"{name}:1",
        "name": name,
        "version": "1",
        "alias": alias,
        "publisher": "lab",
        "inferenceTasks": ["chat-completion"],
        "minFLVersion": "1.0.0",
        "variantInfo": variant,
        "variantInformation": variant,
        "modelLimits": {"textLimits": {"inputContextWindow": 4096, "maxOutputTokens": 2048}},
        "annotations": {
            "tags": {"alias": alias, "foundryLocal": "", "task": "chat-completion"},
            "systemCatalogData": {
                "publisher": "lab",
                "inferenceTasks": ["chat-completion"],
                "deploymentOptions": ["Foundry Local on Devices"],
            },
        },
        "properties": {"id": f"{name}:1", "name": name, "version": 1, "variantInfo": variant},
    }


@pytest.fixture
def catalog_url() -> Iterator[str]:
    """Serve a catalog of two models where the SDK expects Microsoft's."""
    with serving_catalog([entry("phi-4-mini"), entry("qwen")]) as url:
        yield url


@contextmanager
def serving_catalog(entries: list[dict[str, Any]]) -> Iterator[str]:
    listing = json.dumps({"totalCount": len(entries), "value": entries}).encode()

    class Catalog(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(listing)))
            self.end_headers()
            self.wfile.write(listing)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Catalog) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield f"http://127.0.0.1:{server.server_port}/asset-gallery/v1.0/models"
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Hold phi-4-mini as a download would have left it; its files are lab-tiny's."""
    name = "phi-4-mini-instruct-generic-cpu"
    folder = tmp_path / "lab" / f"{name}-1"
    shutil.copytree(BUNDLED_MODEL_DIR, folder)
    (folder / "inference_model.json").write_text(json.dumps({"Name": f"{name}:1"}))
    return tmp_path


@pytest.mark.anyio
async def test_a_downloaded_model_is_listed_loaded_and_served(
    catalog_url: str, cache: Path
) -> None:
    """Its alias can't be derived from its id, and is known all the same."""
    settings = Settings(model="phi-4-mini")
    with Service(settings, catalog_url=catalog_url, cache_dir=cache) as running:
        assert running.model_id == "phi-4-mini-instruct-generic-cpu:1"
        assert running.alias == "phi-4-mini"
        async with FoundryAPIClient(running) as client:
            assert {model.alias: model.loaded for model in await client.models()} == {
                "phi-4-mini": True,
                "qwen": False,
            }
            answer = await client.complete("What is jitter?", model="phi-4-mini")
            assert answer.model == running.model_id
            assert "random" in answer.content
            await client.unload("phi-4-mini", wait=True)
            assert (await client.health_check()).status == "degraded"
            await client.load("phi-4-mini")


@pytest.mark.anyio
async def test_a_known_but_absent_default_model_falls_back_too(
    catalog_url: str, cache: Path
) -> None:
    """phi-4-mini in the catalog, not downloaded, another model served: that one answers."""
    (folder,) = cache.glob("lab/*")
    (folder / "inference_model.json").write_text('{"Name": "qwen-instruct-generic-cpu:1"}')
    served = Service(Settings(model="qwen"), catalog_url=catalog_url, cache_dir=cache)
    with served as running:
        async with FoundryAPIClient(running) as client:
            answer = await client.complete("What is jitter?", model="phi-4-mini", max_tokens=4)
            assert answer.model == "qwen-instruct-generic-cpu:1"


def test_the_default_model_is_used_where_it_is_on_the_machine(
    catalog_url: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing chosen and phi-4-mini downloaded: it serves, and no line about a fallback."""
    with Service(Settings(), catalog_url=catalog_url, cache_dir=cache) as running:
        assert running.alias == "phi-4-mini"
    assert capsys.readouterr().out == ""


def test_the_default_model_is_never_downloaded_unasked(
    catalog_url: str,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing chosen and only another model downloaded: lab-tiny serves, and a line says so."""
    monkeypatch.setattr("foundry_lab.service._said", set())
    (folder,) = cache.glob("lab/*")
    (folder / "inference_model.json").write_text('{"Name": "qwen-instruct-generic-cpu:1"}')
    folder.rename(folder.with_name("qwen-instruct-generic-cpu-1"))
    with Service(Settings(), catalog_url=catalog_url, cache_dir=cache) as running:
        assert running.alias == "lab-tiny"
    assert "phi-4-mini is not on this machine" in capsys.readouterr().out


def test_a_model_the_catalog_does_not_have_gets_the_nearest(
    catalog_url: str, tmp_path: Path
) -> None:
    """A typo in FOUNDRY_MODEL is answered with the alias that was meant."""
    with pytest.raises(CatalogModelNotFound, match="Did you mean phi-4-mini"):
        Service(Settings(model="phi4-mini"), catalog_url=catalog_url, cache_dir=tmp_path).start()


def test_a_catalog_out_of_reach_says_so(tmp_path: Path) -> None:
    """Without a network the SDK finds no model at all; the error says so, and what needs none."""
    with (
        serving_catalog([]) as empty,
        pytest.raises(CatalogModelNotFound, match="can't be reached") as caught,
    ):
        Service(Settings(model="qwen"), catalog_url=empty, cache_dir=tmp_path).start()
    assert "lab-tiny" in str(caught.value)


def test_a_download_shows_its_progress_and_its_failure(
    catalog_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The bar appears; without a network the download ends in an error that says what to do."""
    with pytest.raises(DownloadFailed, match="'qwen' could not be downloaded"):
        Service(Settings(model="qwen"), catalog_url=catalog_url, cache_dir=tmp_path).start()
    assert "Downloading qwen" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal of this kind")
def test_ctrl_c_ends_a_download(catalog_url: str, tmp_path: Path) -> None:
    """Interrupted while nothing arrives, the program ends at once and its child with it."""
    with socket.create_server(("127.0.0.1", 0)) as silent_proxy:
        program = (
            "from pathlib import Path; from foundry_lab import Service, Settings; "
            f"Service(Settings(model='qwen'), catalog_url={catalog_url!r}, "
            f"cache_dir=Path({str(tmp_path)!r})).start()"
        )
        proxy = f"http://127.0.0.1:{silent_proxy.getsockname()[1]}"
        owner = subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HTTPS_PROXY": proxy, "https_proxy": proxy},
        )
        try:
            connection, _ = silent_proxy.accept()  # the download has begun, and now hangs
            assert owner.stderr is not None
            while (piece := owner.stderr.read(1)) != "%":  # the bar is drawn: nothing is imported
                assert piece, "It ended before it drew a progress bar."
            children = psutil.Process(owner.pid).children()
            owner.send_signal(signal.SIGINT)
            _, complaint = owner.communicate(timeout=20)
            connection.close()
        finally:
            owner.kill()
    assert "KeyboardInterrupt" in complaint
    assert children
    assert not any(child.is_running() for child in children)
