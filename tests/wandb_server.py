"""A W&B server on the loopback interface, as far as sweeps, agents and the start of runs ask it."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

PROJECT = {"id": "p1", "name": "lt_cb", "entity": {"id": "e1", "name": "someone"}}
KEY = "0" * 40


class Server(ThreadingHTTPServer):
    """Holds one sweep over a grid, which it hands out a run at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sweep: dict[str, Any] = {}  # the sweep file
        self.left: Iterator[dict[str, Any]] = iter(())
        self.asked: list[str] = []  # operations, or the request as a whole
        self.states: list[dict[str, bool]] = []  # what agents say of their runs
        self.running: set[str] = set()
        self.files: dict[str, bytes] = {}  # uploaded, by run and name
        self.runs: list[dict[str, Any]] = []  # those begun online, as often as they are

    @property
    def environment(self) -> dict[str, str]:
        """What makes wandb talk to this server."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def _url(self, run: str, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/{run}/{name}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of a GraphQL response, None where it is an error."""
        if operation in ("Viewer", "GetDefaultEntity"):
            viewer = {"id": "u1", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if operation == "UpsertSweep":
            self.sweep = yaml.safe_load(variables["config"])
            names = list(self.sweep["parameters"])
            grid = itertools.product(*(self.sweep["parameters"][name]["values"] for name in names))
            self.left = iter([dict(zip(names, values, strict=True)) for values in grid])
            return {"upsertSweep": {"sweep": {"name": "sweep1", "project": PROJECT}, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            sweep = {"id": "s1", "name": "sweep1", "state": "RUNNING", "config": yaml.safe_dump(self.sweep)}
            return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a1"}}}
        if operation == "Heartbeat":
            states = json.loads(variables["runState"])
            self.states.append(states)
            commands: list[dict[str, Any]] = []
            if not any(states.values()):
                values = next(self.left, None)
                if values is None:
                    commands = [{"type": "exit"}]
                else:
                    args = {name: {"value": value} for name, value in values.items()}
                    run = {"type": "run", "run_id": f"run{len(self.running)}", "program": None, "args": args}
                    self.running.add(run["run_id"])
                    commands = [run]
            return {"agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands)}}
        if operation == "UpsertBucket":
            self.runs.append(variables)
            bucket = {"id": "b1", "name": variables["name"], "displayName": "r", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": PROJECT}, "inserted": True}}
        if operation == "Run":
            run = {"id": "b1", "projectId": "1", "name": variables["name"], "state": "finished", "config": "{}"}
            return {"project": {"run": {**run, "summaryMetrics": "{}", "systemMetrics": "{}", "tags": []}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": self._url(variables["run"], name)} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": files}}
        if operation == "RunFiles":
            nodes = []
            for name in variables["fileNames"]:
                url = self._url(variables["name"], name)
                size = len(self.files[url.rpartition("/files/")[2]])
                nodes.append({"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": size, "md5": ""})
            edges = [{"node": node, "cursor": ""} for node in nodes]
            page = {"endCursor": "", "hasNextPage": False}
            run = {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": page}}
            return {"project": {"internalId": "1", "run": run}}
        if operation == "RunResumeStatus":
            if variables["name"] not in {run["name"] for run in self.runs}:
                return {"model": None}
            counts = dict.fromkeys(("logLineCount", "historyLineCount", "eventsLineCount"), 0)
            texts = {
                "summaryMetrics": "{}",
                "historyTail": "[]",
                "eventsTail": "[]",
                "config": "{}",
                "wandbConfig": "{}",
            }
            bucket = {
                "id": "b1",
                "name": variables["name"],
                "displayName": "r",
                "tags": [],
                "notes": "",
                **counts,
                **texts,
            }
            return {"model": {"id": "m1", "name": PROJECT["name"], "bucket": bucket}}
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers with what the server says."""

    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with an uploaded file, or nothing."""
        self.server.asked.append(f"GET {self.path}")
        self._send(self.server.files.get(self.path.removeprefix("/files/"), {}))

    def do_PUT(self) -> None:
        """Take an uploaded file."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.files[self.path.removeprefix("/files/")] = body
        self._send({})

    def do_POST(self) -> None:
        """Answer a GraphQL query, and anything else with nothing."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/graphql":
            self.server.asked.append(f"POST {self.path}")
            self._send({})
            return
        query = json.loads(body)
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", query["query"])
        operation = match[1] if match else ""
        self.server.asked.append(operation)
        data = self.server.answer(operation, query.get("variables") or {})
        self._send({"errors": [{"message": f"{operation} is not served"}]} if data is None else {"data": data})

    def _send(self, value: dict[str, Any] | bytes) -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
