#!/usr/bin/env python3
"""The test suite of the Python client etcd3 0.12.0, and the verbs of etcd3 and etcd3gw 2.7.0 (python_verbs.py),
on etcd and on ours: python.py

The suite is part of the source package; pip brings it. It needs etcdctl, and three nodes for some tests. Takes 15
minutes. See servers.py for what is compared.
"""

import os
import pathlib
import xml.etree.ElementTree

import servers

CLIENT = "etcd3==0.12.0"
NEEDS = ("protobuf<4", "tenacity<7", "setuptools<80", "etcd3gw==2.7.0", "pytest<8", "hypothesis==6.100.0", "mock==5.1.0")
# It wants what hypothesis has forbidden since; and each example starts etcdctl three times.
CONFTEST = """
from hypothesis import HealthCheck, settings
settings.register_profile("few", max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("few")
"""
# The suite takes its members for those of the tool that its authors start them with.
NAMES = ("pifpaf0", "pifpaf1", "pifpaf2")
ALARM = "an alarm cannot be raised by a request: it is a fact about the disk"
KNOWN = {
    "TestAlarms.test_create_alarm_all_members": ALARM,
    "TestAlarms.test_create_alarm_specific_member": ALARM,
    "TestAlarms.test_disarm_alarm": ALARM,
    "TestAlarms.test_list_alarms": ALARM,
    "TestEtcd3.test_member_list": "it wants http:// in the URLs of peers, which speak TLS here",
    "TestEtcd3.test_snapshot": "a snapshot is a file of etcd's own engine; use `steadfast backup create`",
}


def prepare(dir):
    servers.need("etcdctl", "pgrep")
    python = servers.python_with(dir / "python", CLIENT, *NEEDS)
    download = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    servers.run([*download, "--no-binary", ":all:", "--dest", dir, CLIENT])
    (archive,) = dir.glob("etcd3-*.tar.gz")
    servers.run(["tar", "--extract", "--file", archive, "--directory", dir])
    suite = pathlib.Path(str(archive).removesuffix(".tar.gz"))
    (suite / "conftest.py").write_text(CONFTEST)
    return {"python": str(python), "suite": str(suite)}


def suite(server, prepared):
    """What each test did."""
    environment = {**os.environ, "TEST_ETCD_VERSION": "v3.4.0", "ETCDCTL_API": "3"}
    # Where the suite itself looks; its variable for that is also a flag of etcdctl, which takes only one of both.
    environment["ETCDCTL_ENDPOINTS"] = ",".join(f"http://{endpoint}" for endpoint in server.endpoints)
    report = server.dir / "report.xml"
    command = [prepared["python"], "-m", "pytest", "-p", "no:cacheprovider", "--junitxml", report, "tests"]
    servers.keep(server, "python", servers.output_of(command, 900, cwd=prepared["suite"], env=environment))
    found = {}
    if report.exists():
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            said = {part.tag for part in case}
            word = "FAILED" if said & {"failure", "error"} else "skipped" if "skipped" in said else "ok"
            found[case.get("classname").split(".")[-1] + "." + case.get("name")] = word
    return found


def compare(dir, prepared):
    results = {}
    for label, program, nodes in servers.targets(prepared):
        with servers.Servers(label, program, nodes, dir, names=NAMES) as server:
            results[label] = suite(server, prepared)
        verbs = pathlib.Path(__file__).with_name("python_verbs.py")
        with servers.Servers(label, program, nodes, dir) as server:
            output = servers.output_of([prepared["python"], verbs, server.endpoints[-1]], 120)
            servers.keep(server, "python-verbs", output)
            results[label].update({f"verbs: {name}": word for name, word in servers.words(output).items()})
    return servers.compare(results, KNOWN)


servers.main(prepare, compare)
