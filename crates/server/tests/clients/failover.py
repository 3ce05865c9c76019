#!/usr/bin/env python3
"""What clients notice when the leader of three nodes is killed: failover.py

PyPI's etcd3 0.12.0 and etcd3gw 2.7.0, and npm's etcd3 1.1.2, write a key as fast as each may, with a watch on it and
a lease. The Python clients take one address, that of the leader, and are made anew with the next one after an error; the
other has all addresses. The leader is killed after 3 s and starts again after 6 s. Takes 4 minutes. Prints for
each client and server the longest pause between two writes, what the failed ones were told, and whether watch and
lease went on. See servers.py for what is compared.
"""

import os
import pathlib
import subprocess
import time

import servers

FOR_S = 14
KILL_AFTER_S = 3
START_AFTER_S = 6


def prepare(dir):
    servers.need("node", "npm")
    servers.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", dir / "npm", "etcd3@1.1.2"])
    packages = ("etcd3==0.12.0", "protobuf<4", "tenacity<7", "setuptools<80", "etcd3gw==2.7.0")
    return {"modules": str(dir / "npm" / "node_modules"), "python": str(servers.python_with(dir / "python", *packages))}


def follow(server, command, environment):
    """What a client saw while the leader was killed, to which it was connected."""
    leader = server.leader()
    endpoints = server.endpoints[leader:] + server.endpoints[:leader]
    command = [str(part) for part in [*command, FOR_S, ",".join(endpoints)]]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment})
    for line in client.stdout:
        if line == "ready\n":
            break
    time.sleep(KILL_AFTER_S)
    server.processes[leader].kill()
    server.processes[leader].wait()
    time.sleep(START_AFTER_S - KILL_AFTER_S)
    server.start(leader)
    try:
        output, _ = client.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        client.kill()
        output = client.communicate()[0] + "\ndid not end"
    servers.keep(server, "failover-" + pathlib.Path(command[1]).suffix[1:] + "-" + command[2], output)
    lines = [line for line in output.splitlines() if line.startswith("seen: ")]
    return lines[0][6:] if lines else f"no result: {output[-300:]}"


def compare(dir, prepared):
    here = pathlib.Path(__file__).parent
    clients = {
        "etcd3 for Node": (["node", here / "failover_client.mjs"], {"NODE_PATH": prepared["modules"]}),
        "etcd3 for Python": ([prepared["python"], here / "failover_client.py", "grpc"], {}),
        "etcd3gw": ([prepared["python"], here / "failover_client.py", "json"], {}),
    }
    for label, program, nodes in servers.targets(prepared, counts=(3,)):
        for name, (command, environment) in clients.items():
            with servers.Servers(label, program, nodes, dir) as server:
                said = follow(server, command, environment)
            print(f"{name} on {label}: {said}", flush=True)
    return 0


servers.main(prepare, compare)
