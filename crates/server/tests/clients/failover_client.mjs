// Writes a key for some seconds, watches it and holds a lease: failover_client.mjs SECONDS HOST:PORT,…
import { createRequire } from 'node:module';

const { Etcd3 } = createRequire(`${process.env.NODE_PATH}/`)('etcd3');
const seconds = Number(process.argv[2]);
const hosts = process.argv[3].split(',').map(host => `http://${host}`);
const context = call => (call.isStream ? {} : { deadline: Date.now() + 2000 });
const client = new Etcd3({ hosts, defaultCallOptions: context });

const lease = client.lease(5);
let lost = false;
lease.on('lost', () => (lost = true));
await lease.put('failover/lease').value('x');
const told = new Set();
const watcher = await client.watch().key('failover/key').create();
let [disconnects, watchError] = [0, ''];
watcher.on('put', kv => told.add(kv.value.toString()));
watcher.on('disconnected', () => (disconnects += 1));
watcher.on('error', error => (watchError = error.message));

console.log('ready');
const end = Date.now() + seconds * 1000;
const errors = new Map();
const done = [];
let [last, pause] = [Date.now(), 0];
for (let turn = 0; Date.now() < end; turn++) {
  try {
    await client.put('failover/key').value(String(turn));
    done.push(String(turn));
    pause = Math.max(pause, Date.now() - last);
    last = Date.now();
  } catch (error) {
    errors.set(error.constructor.name, (errors.get(error.constructor.name) ?? 0) + 1);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}
pause = Math.max(pause, Date.now() - last);
await new Promise(resolve => setTimeout(resolve, 1000));
const missed = done.filter(turn => !told.has(turn)).length;
const kept = await client.get('failover/lease').string().then(value => value === 'x', () => false);
const refused = [...errors].map(([name, count]) => `${count} ${name}`).join(', ') || 'none';
console.log(
  `seen: longest pause ${(pause / 1000).toFixed(1)} s; failed writes: ${refused}; ` +
    `watch: ${watchError || `${disconnects} disconnects, ${missed} of ${done.length} writes not told`}; lease ${kept && !lost ? 'kept' : 'lost'}`,
);
process.exit();
