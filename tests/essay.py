"""A request that keeps the real service busy."""

from foundry_lab.chat import ChatParameters

__all__ = ["ESSAY"]

ESSAY: ChatParameters = {
    "max_tokens": 3500,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"type": "string", "minLength": 20_000},
    },
}
"""About a second of work, if nobody stops it, whatever the model would say."""
