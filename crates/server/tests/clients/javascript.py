#!/usr/bin/env python3
"""The verbs of the JavaScript client etcd3 1.1.2 (javascript_verbs.mjs), on etcd and on ours: javascript.py

npm brings the client, without its suite, which is not in the package. Takes 3 minutes. See servers.py for what is
compared.
"""

import os
import pathlib

import servers

CLIENT = "etcd3@1.1.2"
KNOWN = {
    "snapshots": "a snapshot is a file of etcd's own engine; use `steadfast backup create`",
}


def prepare(dir):
    servers.need("node", "npm")
    servers.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", dir / "npm", CLIENT])
    return {"modules": str(dir / "npm" / "node_modules")}


def compare(dir, prepared):
    verbs = pathlib.Path(__file__).with_name("javascript_verbs.mjs")
    environment = {**os.environ, "NODE_PATH": prepared["modules"]}
    results = {}
    for label, program, nodes in servers.targets(prepared):
        with servers.Servers(label, program, nodes, dir) as server:
            output = servers.output_of(["node", verbs, ",".join(server.endpoints)], 120, env=environment)
            servers.keep(server, "javascript", output)
            results[label] = servers.words(output)
    return servers.compare(results, KNOWN)


servers.main(prepare, compare)
