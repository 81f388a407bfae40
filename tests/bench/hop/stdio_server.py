"""The same server on standard input and output, for a proxy that knows no other. Standard library only."""

import json
import sys

TEXT = "y" * 800


def result_of(method: str, params: dict[str, str]) -> dict[str, object]:
    if method == "initialize":
        server = {"name": "bench", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        return {"tools": [{"name": "echo", "inputSchema": schema}]}
    return {"content": [{"type": "text", "text": TEXT}]}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        result = result_of(message["method"], message.get("params", {}))
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
