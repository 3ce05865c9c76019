#!/usr/bin/env python3
"""The test suite of the Rust client etcd-client 0.21.1, on etcd and on ours: rust.py

The suite is part of the crate; cargo brings it. PyPI's grpcio-tools brings protoc. Takes 10 minutes, most of it
to compile. See servers.py for what is compared.
"""

import os
import pathlib
import shutil

import servers

CRATE = "etcd-client"
VERSION = "0.21.1"
KNOWN = {
    "test_snapshot": "a snapshot is a file of etcd's own engine; use `steadfast backup create`",
}


def prepare(dir):
    servers.need("cargo")
    python = servers.python_with(dir / "protoc", "grpcio-tools==1.66.2")
    protoc = dir / "protoc" / "bin" / "protoc"
    include = dir.glob("protoc/lib/python*/site-packages/grpc_tools/_proto")
    protoc.write_text(f'#!/bin/sh\nexec "{python}" -m grpc_tools.protoc "$@" "-I{next(include)}"\n')
    protoc.chmod(0o755)
    crate = dir / "crate"
    (dir / "probe" / "src").mkdir(parents=True)
    (dir / "probe" / "src" / "lib.rs").touch()
    manifest = f'[package]\nname = "probe"\nedition = "2021"\n[dependencies]\n{CRATE} = "={VERSION}"\n'
    (dir / "probe" / "Cargo.toml").write_text(manifest)
    servers.run(["cargo", "vendor", "--quiet", dir / "vendor"], cwd=dir / "probe")
    shutil.copytree(dir / "vendor" / CRATE, crate)
    environment = {"PROTOC": str(protoc), "CARGO_TARGET_DIR": str(dir / "target"), "CARGO_PROFILE_DEV_DEBUG": "0"}
    output = servers.run(
        ["cargo", "test", "--quiet", "--no-run", "--message-format=json", "--test", "client", "--test", "namespace"],
        cwd=crate,
        env={**os.environ, **environment},
    )
    marker = '"executable":"'
    found = [line.split(marker)[1].split('"')[0] for line in output.splitlines() if marker in line]
    return {"suites": [program for program in found if pathlib.Path(program).name.startswith(("client-", "namespace-"))]}


def suite(server, prepared):
    """What each test did."""
    server.ask("auth/user/add", name="root", password="rootpwd")
    server.ask("auth/role/add", name="root")
    server.ask("auth/user/grant", user="root", role="root")
    found = {}
    for program in prepared["suites"]:
        # `test_cluster` wants another machine.
        output = servers.output_of([program, "--include-ignored", "--skip", "test_cluster"], 300)
        servers.keep(server, pathlib.Path(program).name.split("-")[0], output)
        for line in output.splitlines():
            if line.startswith("test ") and " ... " in line:
                name, word = line[5:].split(" ... ")
                found[name.split(" ")[0]] = word
    return found


def compare(dir, prepared):
    results = {}
    for label, program, nodes in servers.targets(prepared):
        with servers.Servers(label, program, nodes, dir, token_ttl_s=2) as server:
            results[label] = suite(server, prepared)
    return servers.compare(results, KNOWN)


servers.main(prepare, compare)
