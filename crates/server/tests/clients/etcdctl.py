#!/usr/bin/env python3
"""`etcdctl check perf`, `check datascale` and `make-mirror` on etcd and on ours: etcdctl.py [CHECK/LOAD…]

Such as perf/l or datascale/m; without one they are perf/s and datascale/s. `check perf` takes a minute on each
server. It needs etcdctl. See servers.py for what is compared.
"""

import base64
import os
import subprocess
import sys
import time

import servers

OTHER_PORTS = (12379, 12479, 12579)
MIRRORED_WITHIN_S = 60


def prepare(_):
    servers.need("etcdctl")
    return {"checks": sys.argv[1:] or ["perf/s", "datascale/s"]}


def etcdctl(server, *arguments, within_s=300):
    environment = {**os.environ, "ETCDCTL_API": "3"}
    command = ["etcdctl", "--endpoints", ",".join(server.endpoints), *arguments]
    return servers.output_of(command, within_s, env=environment)


def check(server, checks):
    """What `check` says."""
    found = {}
    for what, load in (each.split("/") for each in checks):
        # Its own prefix, as the keys of a check that failed may be left.
        lines = etcdctl(server, "check", what, "--load", load, "--prefix", f"/check-{what}-{load}/").splitlines()
        # Progress is written over itself.
        said = [line.split("\r")[-1].strip() for line in lines]
        said = [line for line in said if line.startswith(("PASS", "FAIL", "Slowest", "Stddev", "Error"))]
        print(f"{server.label}: check {what} --load {load}: " + "; ".join(said), flush=True)
        bad = [line for line in said if "FAIL" in line or "Error" in line]
        found[f"check {what} --load {load}"] = "ok" if said and not bad else "FAILED"
    return found


def b64(text):
    return base64.b64encode(text.encode()).decode()


def put_all(server, pairs):
    """Puts many keys, some in each transaction."""
    pairs = list(pairs)
    for start in range(0, len(pairs), 100):
        puts = [{"request_put": {"key": b64(key), "value": b64(value)}} for key, value in pairs[start : start + 100]]
        server.ask("kv/txn", success=puts)


def content(server):
    """All keys of a server with their values."""
    found = server.ask("kv/range", key="AA==", range_end="AA==").get("kvs", [])
    return {pair["key"]: pair.get("value", "") for pair in found}


def mirror(source, sink):
    """Whether the sink becomes as the source, and stays so as the source changes."""
    # More than one page of the mirror, and values that need base64.
    put_all(source, ((f"m/{index:05}", f"{index}" * (index % 50) + "\0é") for index in range(2500)))
    command = ["etcdctl", "--endpoints", ",".join(source.endpoints), "make-mirror", sink.endpoints[0]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "ETCDCTL_API": "3"})
    try:
        for change in (lambda: None, lambda: changes(source)):
            change()
            until = time.monotonic() + MIRRORED_WITHIN_S
            while content(source) != content(sink):
                if process.poll() is not None:
                    return f"ended: {process.stderr.read().decode().strip()}"
                if time.monotonic() > until:
                    return f"differs after {MIRRORED_WITHIN_S} s"
                time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    return "ok"


def changes(server):
    put_all(server, ((f"m/{index:05}", "again") for index in range(0, 2500, 3)))
    server.ask("kv/deleterange", key=b64("m/00100"))
    server.ask("kv/deleterange", key=b64("m/00200"), range_end=b64("m/00300"))
    lease = server.ask("lease/grant", TTL=60)["ID"]
    server.ask("kv/put", key=b64("m/leased"), value=b64("x"), lease=lease)
    put_all(server, [("n/one", ""), ("n/two", "2")])
    server.ask("lease/revoke", ID=lease)
    # A key that is put and deleted many times has its last state in the sink.
    for turn in range(20):
        server.ask("kv/put", key=b64("m/turns"), value=b64(str(turn)))
        server.ask("kv/deleterange", key=b64("m/turns"))


def mirrors(dir, prepared):
    """Each server with each other as the sink, where one of them is ours."""
    kinds = [(f"etcd {servers.version(program)} x1", program) for program in prepared["etcds"]]
    kinds.append(("ours x1", prepared["ours"]))
    for from_label, from_program in kinds:
        for to_label, to_program in kinds:
            with servers.Servers(from_label, from_program, 1, dir) as source:
                with servers.Servers(to_label, to_program, 1, dir, ports=OTHER_PORTS) as sink:
                    said = mirror(source, sink)
            print(f"make-mirror from {from_label} to {to_label}: {said}", flush=True)
            if "ours" in from_label + to_label:
                yield said == "ok"


def compare(dir, prepared):
    mirrored = list(mirrors(dir, prepared))
    results = {}
    for label, program, nodes in servers.targets(prepared):
        with servers.Servers(label, program, nodes, dir) as server:
            results[label] = check(server, prepared["checks"])
    differs = servers.compare(results, {})
    return differs if all(mirrored) else 1


servers.main(prepare, compare)
