#!/usr/bin/env python3
"""What clients notice when the leader of three nodes is killed: failover.py

PyPI's etcd3 0.12.0 and etcd3gw 2.7.0, and npm's
etcd3 1.1.2, each writes a key as fast as it may, with a watch on it and a lease, to all three nodes where it takes
more than one address. The leader is killed after 3 s and starts again after 6 s. Takes 3 minutes. Prints for each
client and server the longest pause between two writes, what the failed ones were told, and whether watch and lease
went on. See servers.py for what is compared.
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
    """What a client printed while the leader was killed."""
    client = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    time.sleep(KILL_AFTER_S)
    leader = server.leader()
    server.processes[leader].kill()
    server.processes[leader].wait()
    time.sleep(START_AFTER_S - KILL_AFTER_S)
    server.start(leader)
    try:
        output, _ = client.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        client.kill()
        output = client.communicate()[0] + "\ndid not end"
    servers.keep(server, f"failover-{pathlib.Path(command[1]).stem}-{command[2]}", output)
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
                said = follow(server, [*command, str(FOR_S), ",".join(server.endpoints)], environment)
            print(f"{name} on {label}: {said}", flush=True)
    return 0


servers.main(prepare, compare)
