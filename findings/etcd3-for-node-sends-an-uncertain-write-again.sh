#!/usr/bin/env bash
# npm's etcd3 1.1.2: a write whose outcome is not known is sent again, up to three times more, also one with a guard.
# So what was done once can be told as refused: a lock that was got is reported as taken by somebody else.
#
# A guess is that it does as etcd's own client does, which sends again only what cannot have been done. This client
# takes Unknown, DeadlineExceeded, Unavailable, Internal, Aborted, Cancelled and ResourceExhausted for errors that
# it may answer by sending anew, and does not look at what it sends. etcd answers Unknown or Unavailable to a write
# when it lost its leader meanwhile, and may have done it. With `faultHandling: { global: new NoopPolicy() }` (of the
# package cockatiel) the error comes to the application.
#
# The server here is none of etcd's: it keeps one key, does each guarded put, and answers the first one with
# Unknown after it was done.
#
# Seen: default: sent 2 times, done 1 times, told EtcdLockFailedError; without: sent 1 times, done 1 times, told GRPCUnknownError
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
npm install --silent --no-audit --no-fund --prefix "$dir" etcd3@1.1.2 @grpc/grpc-js@1.14.0 @grpc/proto-loader@0.7.15 cockatiel@3.2.1 >/dev/null
cat >"$dir/probe.mjs" <<'NODE'
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import { NoopPolicy } from 'cockatiel';
import { Etcd3 } from 'etcd3';

const definition = loader.loadSync('node_modules/etcd3/proto/rpc.proto', { keepCase: true, longs: String, enums: String, defaults: true });
const { etcdserverpb } = grpc.loadPackageDefinition(definition);

async function ask(options) {
  let holder = null;
  let [sent, done] = [0, 0];
  const server = new grpc.Server();
  server.addService(etcdserverpb.KV.service, {
    txn(call, answer) {
      sent += 1;
      const succeeded = holder === null;
      if (succeeded) {
        holder = call.request.success[0].request_put.lease;
        done += 1;
      }
      if (sent === 1) answer({ code: grpc.status.UNKNOWN, details: 'context deadline exceeded' });
      else answer(null, { header: { revision: '2' }, succeeded, responses: [] });
    },
  });
  server.addService(etcdserverpb.Lease.service, {
    leaseGrant: (_, answer) => answer(null, { header: { revision: '1' }, ID: '7', TTL: '30' }),
    leaseRevoke: (_, answer) => answer(null, { header: { revision: '3' } }),
    leaseKeepAlive: call => call.on('data', ({ ID }) => call.write({ header: { revision: '1' }, ID, TTL: '30' })),
  });
  const port = await new Promise((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => (error ? reject(error) : resolve(port))),
  );
  const client = new Etcd3({ hosts: `127.0.0.1:${port}`, ...options });
  const told = await client.lock('one').acquire().then(() => 'that it has the lock', error => error.constructor.name);
  client.close();
  server.forceShutdown();
  return `sent ${sent} times, done ${done} times, told ${told}`;
}

const without = { faultHandling: { global: new NoopPolicy() } };
console.log(`default: ${await ask({})}; without: ${await ask(without)}`);
process.exit();
NODE
said="$(cd "$dir" && timeout 120 node probe.mjs)"
echo "$said"
[[ "$said" == "default: sent 2 times, done 1 times, told EtcdLockFailedError; without: sent 1 times, done 1 times, told GRPCUnknownError" ]] || {
    echo "this has changed"
    exit 1
}
echo "as it was seen"
