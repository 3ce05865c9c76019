// The JavaScript client etcd3 1.1.2 at servers: node javascript_verbs.mjs HOST:PORT[,HOST:PORT…]
//
// Every verb of it: keys, transactions, leases, watches, locks, elections, users, members, maintenance. It comes
// with `npm install etcd3@1.1.2` into the folder that NODE_PATH names. Prints a line for each part, and ends with
// 1 when one failed. Takes about 15 s. Users are on for a while: nobody else may use the servers meanwhile.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';

const etcd3 = createRequire(`${process.env.NODE_PATH}/`)('etcd3');
const { Etcd3 } = etcd3;
const hosts = process.argv[2].split(',').map(host => `http://${host}`);
const client = new Etcd3({ hosts });

async function until(what, check) {
  const deadline = Date.now() + 10_000;
  while (!(await check())) {
    assert(Date.now() < deadline, what);
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}

const fails = (promise, kind) => assert.rejects(promise, error => error instanceof kind);

const parts = {
  async keys() {
    await client.put('js/a').value('1');
    await client.put('js/b').value('{"x":2}');
    assert.equal(await client.get('js/a').string(), '1');
    assert.deepEqual(await client.get('js/b').json(), { x: 2 });
    assert.equal(await client.get('js/a').number(), 1);
    assert.deepEqual(await client.get('js/a').buffer(), Buffer.from('1'));
    assert.equal(await client.get('js/none').string(), null);
    assert.equal(await client.get('js/a').exists(), true);
    const old = await client.put('js/a').value('3').getPrevious();
    assert.equal(old.value.toString(), '1');
    await client.put('js/a').touch();
    const { kvs } = await client.get('js/a').exec();
    assert.equal(kvs[0].version, '3');
    assert.equal(await client.delete().key('js/a').getPrevious().then(found => found.length), 1);
    assert.equal((await client.delete().prefix('js/')).deleted, '1');
  },

  async ranges() {
    for (const name of ['c', 'a', 'b', 'd']) await client.put(`js/r/${name}`).value(`v${name}`);
    const all = () => client.getAll().prefix('js/r/');
    assert.deepEqual(await all().keys(), ['js/r/a', 'js/r/b', 'js/r/c', 'js/r/d']);
    assert.equal(await all().count(), 4);
    assert.deepEqual(await all().sort('Create', 'Descend').limit(2).keys(), ['js/r/d', 'js/r/b']);
    assert.deepEqual(await all().sort('Value', 'Ascend').limit(1).strings(), { 'js/r/a': 'va' });
    assert.deepEqual(await client.getAll().inRange({ start: 'js/r/b', end: 'js/r/d' }).keys(), ['js/r/b', 'js/r/c']);
    const { kvs, header } = await all().exec();
    const newest = kvs.map(kv => Number(kv.mod_revision)).sort((a, b) => a - b).at(-1);
    assert.deepEqual(await all().minModRevision(newest).keys(), ['js/r/d']);
    assert.equal(await all().maxCreateRevision(newest - 1).count(), 4); // counts what the filter drops
    await client.delete().prefix('js/r/');
    assert.equal(await all().count(), 0);
    assert.equal(await all().revision(header.revision).count(), 4);
    assert.equal(await all().serializable(true).revision(header.revision).count(), 4);
    await fails(all().revision(Number(header.revision) + 1000).exec(), etcd3.GRPCOutOfRangeError);
  },

  async namespaces() {
    const space = client.namespace('js/n/');
    await space.put('a').value('1');
    assert.equal(await client.get('js/n/a').string(), '1');
    assert.deepEqual(await space.getAll().keys(), ['a']);
    const watcher = await space.watch().prefix('').create();
    const told = once(watcher, 'put');
    await space.put('b').value('2');
    assert.equal((await told)[0].key.toString(), 'b');
    await watcher.cancel();
    assert.equal((await space.delete().all()).deleted, '2');
  },

  async transactions() {
    await client.put('js/t').value('1');
    const done = await client
      .if('js/t', 'Value', '==', '1')
      .and('js/t', 'Version', '>', 0)
      .and('js/none', 'Create', '==', 0)
      .then(client.put('js/t').value('2'), client.get('js/t'), client.delete().key('js/none'))
      .else(client.get('js/t'))
      .commit();
    assert.equal(done.succeeded, true);
    assert.deepEqual(done.responses.map(part => part.response), ['response_put', 'response_range', 'response_delete_range']);
    assert.equal(done.responses[1].response_range.kvs[0].value.toString(), '2');
    const other = await client.if('js/t', 'Mod', '<', 1).then(client.put('js/t').value('3')).else(client.get('js/t')).commit();
    assert.equal(other.succeeded, false);
    assert.equal(other.responses[0].response_range.kvs[0].value.toString(), '2');
    const twice = client.if('js/t', 'Value', '==', '2').then(client.put('js/t').value('4'), client.put('js/t').value('5')).commit();
    await fails(twice, etcd3.GRPCInvalidArgumentError);
  },

  async softwareTransactions() {
    await client.put('js/s').value('1');
    // From SerializableSnapshot to ReadCommitted; the names are not in what the package exports.
    for (const isolation of [0, 1, 2, 3]) {
      let tries = 0;
      await client.stm({ isolation }).transact(async transaction => {
        const value = Number(await transaction.get('js/s').string());
        if (++tries === 1) await client.put('js/s').value(value + 10);
        await transaction.put('js/s').value(value + 1);
      });
      assert(tries <= 2, `${tries} tries`);
    }
    assert(Number(await client.get('js/s').string()) > 10);
  },

  async leases() {
    const lease = client.lease(60, { autoKeepAlive: false });
    const id = await lease.grant();
    await lease.put('js/l').value('x');
    assert.equal((await client.get('js/l').exec()).kvs[0].lease, id);
    assert.equal((await lease.keepaliveOnce()).TTL, '60');
    const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
    assert.deepEqual(left.keys.map(String), ['js/l']);
    assert(Number(left.TTL) >= 58 && left.grantedTTL === '60');
    const { leases } = await client.leaseClient.leaseLeases();
    assert(leases.some(found => found.ID === id));
    await lease.revoke();
    assert.equal(await client.get('js/l').string(), null);
    const lost = client.lease(60, { autoKeepAlive: false });
    await client.leaseClient.leaseRevoke({ ID: await lost.grant() });
    await fails(lost.keepaliveOnce(), etcd3.EtcdLeaseInvalidError);
    await fails(lost.put('js/l').value('x').exec(), etcd3.EtcdLeaseInvalidError);
    const short = client.lease(2, { autoKeepAlive: false });
    await short.put('js/l').value('x');
    await until('it does not expire', async () => (await client.get('js/l').string()) === null);
    const kept = client.lease(1);
    await kept.put('js/l').value('x');
    for (let times = 0; times < 8; times++) await once(kept, 'keepaliveSucceeded');
    assert.equal(await client.get('js/l').string(), 'x');
    await kept.revoke();
  },

  async watches() {
    const watcher = await client.watch().prefix('js/w').withPreviousKV().create();
    const messages = [];
    watcher.on('data', message => messages.push(...message.events));
    await client.put('js/w1').value('x');
    await client.put('js/w1').value('y');
    await client.delete().key('js/w1');
    await until('three events', () => messages.length === 3);
    assert.deepEqual(messages.map(event => event.type), ['Put', 'Put', 'Delete']);
    assert.equal(messages[2].prev_kv.value.toString(), 'y');
    await watcher.cancel();
    const first = messages[0].kv.mod_revision;
    const again = client.watch().prefix('js/w').startRevision(first).only('delete').watcher();
    const [deleted] = await once(again, 'delete');
    assert.equal(deleted.key.toString(), 'js/w1');
    await again.cancel();
    const many = await Promise.all([1, 2, 3, 4].map(index => client.watch().key(`js/m${index}`).create()));
    const told = Promise.all(many.map(one => once(one, 'put')));
    for (const index of [4, 3, 2, 1]) await client.put(`js/m${index}`).value('z');
    assert.deepEqual((await told).map(([kv]) => kv.key.toString()), ['js/m1', 'js/m2', 'js/m3', 'js/m4']);
    for (const one of many) await one.cancel();
  },

  async locks() {
    const lock = client.lock('js/lock').ttl(5);
    await lock.acquire();
    await fails(client.lock('js/lock').acquire(), etcd3.EtcdLockFailedError);
    await lock.release();
    assert.equal(await client.lock('js/lock').do(async () => 'done'), 'done');
  },

  async elections() {
    const election = client.election('js', 5);
    const first = await election.campaign('one').wait();
    assert.equal(await election.leader(), 'one');
    const observer = await election.observe();
    const second = election.campaign('two');
    await first.proclaim('uno');
    await until('the new value', async () => observer.leader() === 'uno');
    const elected = second.wait();
    await second.getCampaignKey();
    await first.resign();
    await elected;
    await until('the other leader', async () => observer.leader() === 'two');
    await observer.cancel();
    await second.resign();
    assert.equal(await election.leader(), undefined);
  },

  async users() {
    const role = await client.role('js-role').create();
    await fails(client.role('js-role').create(), etcd3.EtcdRoleExistsError);
    await role.grant({ permission: 'Readwrite', range: client.range({ prefix: 'js/u' }) });
    assert.deepEqual((await role.permissions()).map(found => found.permission), ['Readwrite']);
    const user = await client.user('js-user').create('secret');
    await user.addRole(role);
    assert.deepEqual((await user.roles()).map(found => found.name), ['js-role']);
    await fails(client.user('nobody').delete(), etcd3.EtcdUserNotFoundError);
    await fails(client.role('nothing').delete(), etcd3.EtcdRoleNotFoundError);
    const root = await client.user('root').create('secret');
    await (await client.role('root').create()).addUser(root);
    await client.auth.authEnable();
    const as = (username, password) => new Etcd3({ hosts, auth: { username, password } });
    const [admin, limited, wrong] = [as('root', 'secret'), as('js-user', 'secret'), as('js-user', 'wrong')];
    try {
      await limited.put('js/u1').value('x');
      await fails(limited.put('js/other').value('x').exec(), etcd3.EtcdPermissionDeniedError);
      await fails(limited.watch().key('js/other').create(), etcd3.EtcdPermissionDeniedError);
      await fails(wrong.get('js/u1').exec(), etcd3.EtcdAuthenticationFailedError);
      await fails(client.get('js/u1').exec(), etcd3.GRPCInvalidArgumentError);
      assert.equal((await admin.getUsers()).length, 2);
      await admin.user('js-user').setPassword('other');
      await as('js-user', 'other').get('js/u1');
    } finally {
      await admin.auth.authDisable();
      [admin, limited, wrong].forEach(one => one.close());
    }
    for (const each of [...(await client.getUsers()), ...(await client.getRoles())]) await each.delete();
    assert.deepEqual(await client.getRoles(), []);
  },

  async members() {
    const { members, header } = await client.cluster.memberList({});
    assert.equal(members.length, hosts.length);
    assert(members.every(member => member.clientURLs.length === 1 && member.name));
    assert(members.some(member => member.ID === header.member_id));
  },

  async maintenance() {
    const status = await client.maintenance.status();
    assert(/^3\.\d+\.\d+$/.test(status.version) && Number(status.dbSize) > 0 && status.leader !== '0');
    assert.deepEqual((await client.maintenance.alarm({ action: 'Get' })).alarms, []);
    await client.maintenance.defragment();
    await client.maintenance.hash();
    const { header } = await client.put('js/c').value('1');
    await client.kv.compact({ revision: header.revision, physical: true });
    await fails(client.kv.compact({ revision: header.revision }), etcd3.GRPCOutOfRangeError);
    const compacted = client.watch().key('js/c').startRevision(1).watcher();
    const [error] = await once(compacted, 'error').catch(thrown => [thrown]);
    assert(error instanceof Error, 'a watch of what is compacted');
  },

  async snapshots() {
    const stream = await client.maintenance.snapshot();
    let bytes = 0;
    stream.on('data', part => (bytes += part.blob.length));
    await once(stream, 'end');
    assert(bytes > 0);
  },
};

await client.delete().prefix('js/');
for (const [name, part] of Object.entries(parts)) {
  try {
    await part();
    console.log(`${name}: ok`);
  } catch (error) {
    process.exitCode = 1;
    console.log(`${name}: FAILED\n${error.stack}`);
  }
}
client.close();
setTimeout(() => process.exit(), 1000).unref();
