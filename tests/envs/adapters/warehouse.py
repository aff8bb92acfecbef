"""An MCP server as a user would have it: a small stock list, and tools that misbehave on purpose."""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer

server = MCPServer("warehouse")
STOCK = {"bolts": 40, "nuts": 17}
taken: list[str] = []


@server.tool()
def stock(item: str) -> int:
    """How many of an item there are."""
    return STOCK[item]


@server.tool()
def take(item: str, count: int = 1) -> str:
    """Take some of an item; says what this server has handed out since it started."""
    taken.append(f"{count} {item}")
    return ", ".join(taken)


@server.tool()
def flood() -> str:
    """A very long answer."""
    return "first" + "x" * 100_000 + "last"


@server.tool()
def sleep(seconds: float) -> str:
    """Answers late."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """Ends the server."""
    print("the roof came down", file=sys.stderr, flush=True)
    os._exit(3)


if __name__ == "__main__":
    server.run("stdio")
