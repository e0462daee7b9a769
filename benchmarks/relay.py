"""A relay on 127.0.0.1 that hands on bytes both ways: the least that any proxy must do.

python benchmarks/relay.py HOST PORT    # prints its URL, runs until it is ended
"""

import asyncio
import socket
import sys

from foundry_lab.wire import QUICK_ACK


async def relay(host: str, port: int) -> None:
    """Listen, and connect each client to that host and port."""

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(host, port)
        await asyncio.gather(
            _hand_on(client, to_server, None),
            _hand_on(server, to_client, to_server.get_extra_info("socket")),
        )

    listening = await asyncio.start_server(serve, "127.0.0.1")
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    await listening.serve_forever()


async def _hand_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, acknowledge: socket.socket | None
) -> None:
    while data := await reader.read(65536):
        if acknowledge is not None and QUICK_ACK is not None:
            acknowledge.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
        writer.write(data)
    writer.close()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], int(sys.argv[2])))
