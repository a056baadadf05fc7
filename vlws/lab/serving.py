"""The command that serves the workspace to programs by the Model Context Protocol."""

import os
import secrets
import signal
import socket
import sys
from typing import Annotated, Any

import typer

from vlws.errors import InputError
from vlws.lab.options import Json
from vlws.lab.terminal import answer

HOST = "127.0.0.1"
TOKEN = "VLWS_MCP_TOKEN"
SHORTEST = 16  # characters of a token


def mcp_command(
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP on this machine instead of stdio.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --http; 0 takes a free one.", min=0, max=65535)] = 8808,
    minutes: Annotated[float, typer.Option(help="Budget of computing time of all runs that it starts.")] = 60.0,
    jobs: Annotated[int, typer.Option("-j", "--jobs", help="How many runs at once.")] = 1,
    allow_hub: Annotated[
        bool, typer.Option("--allow-hub", help="Take backbones by hub id; else only shipped ones and the workspace's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the workspace to a program by the Model Context Protocol: on stdio, or on HTTP with a token.

    The token is that of VLWS_MCP_TOKEN, or one made for this server and printed to stderr. With --json the server is
    described and not started. Examples: vlws mcp --minutes 30; vlws mcp --http --port 8808; vlws mcp --json
    """
    import anyio

    from vlws import paths
    from vlws.lab import server as library
    from vlws.lab.background import Runs

    token = _token() if http and not as_json else None
    runs = Runs(minutes, jobs, allow_hub)
    server = library.make(runs)
    if as_json:
        told = anyio.run(_described, server) | {"budget": runs.state(), "transport": "http" if http else "stdio"}
        answer(True, told | ({"url": f"http://{HOST}:{port}/mcp"} if http else {}), "")
        return
    os.chdir(paths.root())  # where relative paths of callers start
    if sys.stdin.isatty() and not http:
        print("vlws mcp speaks the Model Context Protocol on stdin and stdout; see AGENTS.md.", file=sys.stderr)
    for sign in (signal.SIGINT, signal.SIGTERM):
        # at once: a thread that reads stdin cannot be interrupted, and the runs cancel themselves
        signal.signal(sign, lambda *_: os._exit(130))
    try:
        if token:
            anyio.run(_serve_http, server, port, token)
        else:
            server.run("stdio")
    finally:
        runs.close()


def _token() -> str:
    """The token that a caller must give; this process forgets it, so that no run inherits it."""
    given = os.environ.pop(TOKEN, None)
    if given is None:
        made = secrets.token_urlsafe(32)
        print(f"token: {made}", file=sys.stderr, flush=True)
        return made
    if len(given) < SHORTEST or not given.isascii() or not given.isprintable() or " " in given:
        raise InputError(
            f"{TOKEN} has {len(given)} characters; it must be at least {SHORTEST} of ASCII, printable and no spaces."
        )
    return given


async def _serve_http(server: Any, port: int, token: str) -> None:
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    from vlws.lab.guards import BearerToken

    with socket.create_server((HOST, port)) as listening:
        port = listening.getsockname()[1]
        hosts = [f"{host}:{port}" for host in (HOST, "localhost")]
        security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts])
        app = BearerToken(server.streamable_http_app(transport_security=security), token)
        print(f"serving http://{HOST}:{port}/mcp", file=sys.stderr, flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        await uvicorn.Server(config).serve(sockets=[listening])


async def _described(server: Any) -> dict[str, Any]:
    """Tools, resources and prompts as the protocol lists them."""
    lists = {
        "tools": await server.list_tools(),
        "resources": await server.list_resources(),
        "resource_templates": await server.list_resource_templates(),
        "prompts": await server.list_prompts(),
    }
    return {
        "name": server.name,
        "version": server.version,
        **{
            name: [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in found]
            for name, found in lists.items()
        },
    }
