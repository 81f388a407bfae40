"""A legacy MCP server on standard input and output, run as a script; the called tool says how it misbehaves."""

import json
import os
import subprocess
import sys
from typing import Any

heard: list[dict[str, Any]] = []
waiting: dict[Any, dict[str, Any]] = {}


def send(message: dict[str, Any]) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def answer(request: dict[str, Any], value: Any) -> None:
    send({"id": request["id"], "result": {"content": [{"type": "text", "text": json.dumps(value)}]}})


def call(request: dict[str, Any]) -> None:
    name, params = request["params"]["name"], request["params"]
    token = params.get("_meta", {}).get("progressToken")
    if name == "echo":
        answer(request, params.get("arguments"))
    elif name == "facts":
        answer(request, {"pid": os.getpid(), "environment": dict(os.environ), "heard": heard, "params": params})
    elif name == "hold":  # answered by `release`, the newest first
        waiting[request["id"]] = request
        if token is not None:
            send({"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
    elif name == "release":
        for held in reversed(list(waiting.values())):
            answer(held, held["params"]["arguments"])
        waiting.clear()
        answer(request, "released")
    elif name == "die":
        print("fatal: told to die", file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "garbage":
        print("this is not JSON", flush=True)
        send({"id": "nobody", "result": {}})
        send({"id": 999_999, "result": {}})
        send({"method": "notifications/progress", "params": {"progressToken": 424242, "progress": 1}})
        send({"method": 7, "id": [1]})
        send({"method": "notifications/message", "params": {"_meta": 7, "level": "info", "data": "?"}})
        print("[1, 2]", flush=True)
        answer(request, "still here")
    elif name == "ask":
        waiting["asked"] = request
        send({"id": "s1", "method": "elicitation/create", "params": {"message": "Well?", "requestedSchema": {}}})
    elif name == "ping":
        waiting["asked"] = request
        send({"id": "s2", "method": "ping"})
    elif name == "child":
        answer(request, subprocess.Popen(["sleep", "1000"]).pid)
    elif name == "log":
        send({"method": "notifications/message", "params": {"level": "info", "data": "about somebody's call"}})
        answer(request, "logged")
    elif name == "flood":
        for _ in range(40):
            send({"method": "notifications/progress", "params": {"progressToken": token, "message": "x" * 500_000}})
        answer(request, "flooded")


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        heard.append(message)
        method = message.get("method")
        if method == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}},
                "serverInfo": {"name": "scripted", "version": "1"},
                "instructions": "Be kind",
            }
            send({"id": message["id"], "result": result})
        elif method == "tools/call":
            call(message)
        elif method == "tools/list":
            send({"id": message["id"], "result": {"tools": []}})
        elif method in ("resources/subscribe", "resources/unsubscribe"):
            send({"id": message["id"], "result": {}})
            send({"method": "notifications/resources/updated", "params": {"uri": message["params"]["uri"]}})
        elif method == "resources/read":
            send({"id": message["id"], "error": {"code": -32002, "message": "Resource not found"}})
        elif method is None and "asked" in waiting:
            answer(waiting.pop("asked"), message)
        elif "id" in message:
            send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


if __name__ == "__main__":
    main()
