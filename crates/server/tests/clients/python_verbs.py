#!/usr/bin/env python3
"""The Python clients etcd3 0.12 and etcd3gw 2.7 at a server: python_verbs.py HOST:PORT

They come into an environment of their own with
  pip install etcd3==0.12.0 'protobuf<4' 'tenacity<7' etcd3gw==2.7.0 'setuptools<80'
Prints a line for each part, and ends with 1 when one failed. Takes about 15 s.
"""

import sys
import threading
import time
import traceback

import etcd3
import etcd3gw
from etcd3gw.lock import Lock as GatewayLock

HOST, PORT = sys.argv[1].rsplit(":", 1)
grpc = etcd3.client(host=HOST, port=int(PORT), timeout=10)
gateway = etcd3gw.client(host=HOST, port=int(PORT), api_path="/v3/", timeout=10)


def keys():
    grpc.put("py/a", "1")
    grpc.put("py/b", "2")
    value, meta = grpc.get("py/a")
    assert value == b"1" and meta.version == 1
    assert [v for v, _ in grpc.get_prefix("py/", sort_order="descend", sort_target="value")] == [b"2", b"1"]
    assert grpc.put_if_not_exists("py/a", "3") is False
    assert grpc.replace("py/a", "1", "4") is True and grpc.replace("py/a", "1", "5") is False
    assert grpc.delete("py/a") is True and grpc.delete("py/a") is False
    assert grpc.delete_prefix("py/").deleted == 1


def transactions():
    grpc.put("py/t", "1")
    done, answers = grpc.transaction(
        compare=[grpc.transactions.value("py/t") == "1", grpc.transactions.version("py/t") > 0],
        success=[grpc.transactions.put("py/t", "2"), grpc.transactions.get("py/t")],
        failure=[],
    )
    assert done and answers[1][0][0] == b"2"


def watches():
    events, cancel = grpc.watch_prefix("py/w")
    grpc.put("py/w1", "x")
    grpc.delete("py/w1")
    first, second = next(events), next(events)
    assert isinstance(first, etcd3.events.PutEvent) and first.value == b"x"
    assert isinstance(second, etcd3.events.DeleteEvent) and second.key == b"py/w1"
    cancel()


def leases():
    lease = grpc.lease(3)
    grpc.put("py/l", "x", lease=lease)
    assert lease.keys == [b"py/l"] and lease.granted_ttl == 3 and 0 <= lease.remaining_ttl <= 3
    assert [answer.TTL for answer in lease.refresh()] == [3]
    lease.revoke()
    assert grpc.get("py/l")[0] is None
    lease = grpc.lease(2)
    grpc.put("py/l", "x", lease=lease)
    deadline = time.monotonic() + 8
    while grpc.get("py/l")[0] is not None:
        assert time.monotonic() < deadline, "it does not expire"
        time.sleep(0.1)


def locks():
    lock = grpc.lock("py-lock", ttl=10)
    assert lock.acquire(timeout=5)
    other = grpc.lock("py-lock", ttl=10)
    freed = threading.Timer(0.5, lock.release)
    freed.start()
    assert other.acquire(timeout=8)
    other.release()


def operator():
    members = list(grpc.members)
    assert members and all(member.client_urls for member in members)
    assert grpc.status().leader is not None
    grpc.hash()
    assert list(grpc.list_alarms()) == []
    grpc.defragment()
    _, meta = grpc.get("py/t")
    grpc.compact(meta.mod_revision)
    try:
        grpc.compact(meta.mod_revision)
    except Exception as error:  # the client makes its own kind of each code
        assert "compacted" in str(error) or "compacted" in repr(error), repr(error)
    else:
        raise AssertionError("compacted twice")


def gateway_keys():
    gateway.put("gw/a", "1")
    assert gateway.get("gw/a") == [b"1"]
    assert gateway.create("gw/a", "2") is False and gateway.create("gw/b", "2") is True
    assert gateway.replace("gw/a", "1", "3") is True and gateway.replace("gw/a", "1", "4") is False
    found = gateway.get_prefix("gw/", sort_order="descend", sort_target="key")
    assert [meta["key"] for _, meta in found] == [b"gw/b", b"gw/a"]
    assert gateway.delete("gw/a") is True and gateway.delete("gw/a") is False
    assert gateway.delete_prefix("gw/") is True
    assert gateway.status()["version"].startswith("3.") and gateway.members()


def gateway_leases():
    lease = gateway.lease(ttl=5)
    gateway.put("gw/l", "x", lease=lease)
    assert lease.keys() == [b"gw/l"] and 0 < lease.ttl() <= 5
    assert lease.refresh() == 5
    assert lease.revoke() is True
    assert gateway.get("gw/l") == []


def gateway_watches():
    events, cancel = gateway.watch("gw/w")
    gateway.put("gw/w", "x")
    event = next(events)
    assert event["kv"]["value"] == b"x", event
    cancel()


def gateway_locks():
    first, second = (GatewayLock("gw-lock", ttl=10, client=gateway) for _ in range(2))
    assert first.acquire() is True and second.acquire() is False and first.is_acquired()
    assert first.release() is True and second.acquire() is True
    second.release()


for left_over in ("py/", "gw/"):
    grpc.delete_prefix(left_over)
failed = 0
for part in (keys, transactions, watches, leases, locks, operator, gateway_keys, gateway_leases, gateway_watches, gateway_locks):
    try:
        part()
        print(f"{part.__name__}: ok")
    except Exception:
        failed = 1
        print(f"{part.__name__}: FAILED\n{traceback.format_exc()}")
sys.exit(failed)
