"""What runs in the child process: the real Foundry Local runtime and its web service.

`foundry_lab.child` starts it as ``python -m foundry_lab.runtime PLAN FOLDER``. It loads one model,
says in one line of JSON where it listens, and waits for its standard input to close: that is how
it ends with its parent, however the parent ends.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from foundry_local_sdk import (
    CatalogType,
    Configuration,
    FoundryLocalManager,
    IModel,
    ModelInfoBuilder,
)
from foundry_local_sdk.exception import FoundryLocalException
from foundry_local_sdk.logging_helper import LogLevel

from foundry_lab.child import Plan
from foundry_lab.errors import (
    CatalogModelNotFound,
    DownloadFailed,
    FoundryLabError,
    PortInUse,
    ServiceStartFailed,
    nearest_names,
)

Say = Callable[[dict[str, Any]], None]

_LOG_LEVELS = {
    "DEBUG": LogLevel.DEBUG,
    "INFO": LogLevel.INFORMATION,
    "WARNING": LogLevel.WARNING,
    "ERROR": LogLevel.ERROR,
    "CRITICAL": LogLevel.FATAL,
}


def main() -> None:
    say = _take_stdout()
    plan, folder = Plan(**json.loads(sys.argv[1])), sys.argv[2]
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    try:
        say({"event": "ready", "pid": os.getpid(), **_serve(plan, folder, say)})
    except FoundryLabError as error:
        _fail(say, error)
    except FoundryLocalException as error:
        fix = "Run `python -m foundry_lab doctor`, and try FOUNDRY_MODEL=lab-tiny."
        _fail(say, ServiceStartFailed(f"The runtime refused to start: {error}", fix=fix))
    threading.Event().wait()


def _fail(say: Say, error: FoundryLabError) -> NoReturn:
    say({"event": "failed", "error": type(error).__name__, "what": error.what, "fix": error.fix})
    os._exit(1)


def _take_stdout() -> Say:
    """Keep standard output for our lines alone: what native code prints goes to the log."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=ours, flush=True)

    return say


def _end_with_parent(folder: str) -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    # Not sys.exit: closing the runtime waits for a running generation, which can take minutes.
    os._exit(0)


def _serve(plan: Plan, folder: str, say: Say) -> dict[str, Any]:
    manager = _start_runtime(plan, folder)
    if plan.model_dir is not None:
        model = _register(manager, plan.model, plan.model_dir)
    else:
        model = _find_in_catalog(manager, plan, say)
    try:
        model.load()
    except FoundryLocalException as error:
        raise ServiceStartFailed(
            f"The model {model.id!r} does not load: {error}",
            fix="Check that the folder holds a complete model for ONNX Runtime GenAI.",
        ) from error
    own = plan.model_dir is not None
    return {
        "url": _open_port(manager, plan.port) + ("/catalogs/local" if own else ""),
        "model_id": model.id,
        "aliases": {model.id: model.alias} if own else _aliases(manager),
    }


def _aliases(manager: FoundryLocalManager) -> dict[str, str]:
    """Map each id of the catalog to its alias: over HTTP only the ids can be seen."""
    models = manager.catalog.list_models()
    return {variant.id: model.alias for model in models for variant in model.variants}


def _start_runtime(plan: Plan, folder: str) -> FoundryLocalManager:
    cache_dir = f"{folder}/cache" if plan.model_dir is not None else plan.cache_dir
    FoundryLocalManager.initialize(
        Configuration(
            app_name="foundry-lab",
            app_data_dir=folder,
            model_cache_dir=cache_dir,
            logs_dir=folder,
            log_level=_LOG_LEVELS[plan.log_level],
            web=Configuration.WebService(urls=f"http://127.0.0.1:{plan.port}"),
            catalog_urls=[(plan.catalog_url, None)] if plan.catalog_url else None,
            disable_nonessential_telemetry=True,
        )
    )
    manager = FoundryLocalManager.instance
    assert manager is not None
    return manager


def _register(manager: FoundryLocalManager, alias: str, folder: str) -> IModel:
    with ModelInfoBuilder() as metadata:
        metadata.set_string_property("task", "chat-completion")
        return manager.get_catalog(CatalogType.LOCAL).register_model(
            model_path=folder, model_id=f"{alias}:1", metadata=metadata
        )


def _find_in_catalog(manager: FoundryLocalManager, plan: Plan, say: Say) -> IModel:
    model = manager.catalog.get_model(plan.model)
    if model is None:
        raise _not_in_catalog(plan.model, [known.alias for known in manager.catalog.list_models()])
    if not model.is_cached:
        if not plan.download:
            raise CatalogModelNotFound(
                f"The model {plan.model!r} is not on this machine.",
                fix=f"Set FOUNDRY_MODEL={plan.model} to have it downloaded.",
            )
        _download(model, say)
    return model


def _not_in_catalog(alias: str, known: list[str]) -> CatalogModelNotFound:
    if not known:
        return CatalogModelNotFound(
            f"The catalog that should hold {alias!r} can't be reached: is there no network?",
            fix="Use FOUNDRY_MODEL=lab-tiny, which needs none.",
        )
    return CatalogModelNotFound(
        f"The catalog has no model {alias!r}. {nearest_names(alias, known)}",
        fix="Set FOUNDRY_MODEL to one of these aliases, or to lab-tiny.",
    )


def _download(model: IModel, say: Say) -> None:
    def report(percent: float) -> None:
        say({"event": "download", "model": model.alias, "percent": percent})

    try:
        model.download(progress_callback=report)
    except FoundryLocalException as error:
        raise DownloadFailed(
            f"The model {model.alias!r} could not be downloaded: {error}",
            fix="Check the network and the free disk space, then start again: what has arrived "
            "stays. FOUNDRY_MODEL=lab-tiny needs no download.",
        ) from error


def _open_port(manager: FoundryLocalManager, port: int) -> str:
    try:
        manager.start_web_service()
    except FoundryLocalException as error:
        if "bind" not in str(error):
            raise
        raise PortInUse(
            f"Nothing can listen on 127.0.0.1:{port}: {str(error).rpartition(' bind ')[2]}.",
            fix="Stop the program that uses the port, or choose port 0 for any free one.",
        ) from error
    assert manager.urls
    return manager.urls[0]


if __name__ == "__main__":
    main()
