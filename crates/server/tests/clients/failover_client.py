"""Writes a key for some seconds, watches it and holds a lease: failover_client.py grpc|json SECONDS HOST:PORT,…"""

import collections
import os
import sys
import threading
import time

import etcd3
import etcd3gw

FORM, SECONDS, ENDPOINTS = sys.argv[1], float(sys.argv[2]), sys.argv[3].split(",")
TIMEOUT_S = 2


def addresses():
    return [(host, int(port)) for host, port in (endpoint.split(":") for endpoint in ENDPOINTS)]


def connect(turn):
    """A client of one of the nodes; neither takes more than one."""
    host, port = addresses()[turn % len(ENDPOINTS)]
    if FORM == "grpc":
        return etcd3.client(host=host, port=port, timeout=TIMEOUT_S)
    return etcd3gw.client(host=host, port=port, api_path="/v3/", timeout=TIMEOUT_S)


def value_of(event):
    return event.value if FORM == "grpc" else event["kv"]["value"]


def keep_alive(client):
    if FORM == "grpc":
        list(client.refresh_lease(lease.id))
    else:
        client.post(client.get_url("/lease/keepalive"), json={"ID": lease.id})


told, watch_error = set(), []


def watch(client):
    try:
        events, _ = client.watch("failover/key")
        for event in events:
            told.add(value_of(event))
    except Exception as error:
        watch_error.append(type(error).__name__)


turn_of_client = 0
client = connect(turn_of_client)
lease = client.lease(5)
client.put("failover/lease", "x", lease=lease)
# The watch stays with the node that it began with: these clients do not move one.
threading.Thread(target=watch, args=(client,), daemon=True).start()
time.sleep(0.5)
print("ready", flush=True)

end = time.monotonic() + SECONDS
done, errors = [], collections.Counter()
last, pause, refreshed = time.monotonic(), 0, 0
turn = 0
while time.monotonic() < end:
    turn += 1
    try:
        client.put("failover/key", str(turn))
        if time.monotonic() - refreshed > 1:
            # It is kept alive through whichever node is used.
            keep_alive(client)
            refreshed = time.monotonic()
        done.append(str(turn).encode())
        pause = max(pause, time.monotonic() - last)
        last = time.monotonic()
    except Exception as error:
        errors[type(error).__name__] += 1
        turn_of_client += 1
        client = connect(turn_of_client)
        time.sleep(0.02)
pause = max(pause, time.monotonic() - last)
time.sleep(1)
missed = len([value for value in done if value not in told])
left = client.get("failover/lease")
kept = left[0] == b"x" if FORM == "grpc" else left == [b"x"]
refused = ", ".join(f"{count} {name}" for name, count in errors.items()) or "none"
watched = watch_error[0] if watch_error else f"{missed} of {len(done)} writes not told"
print(f"seen: longest pause {pause:.1f} s; failed writes: {refused}; watch: {watched}; lease {'kept' if kept else 'lost'}", flush=True)
os._exit(0)
