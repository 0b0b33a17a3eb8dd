"""The real launcher over hosts that are all this machine; every way in which the network can fail names it."""

import shutil
import socket

import pytest
from doctor.fake_cluster import NEVER_ANSWERS, UNREACHABLE, FakeCluster

from multicoco.doctor import launch
from multicoco.doctor.hosts import Host
from multicoco.doctor.launch import check_bandwidth, check_master
from multicoco.engine.deepspeed import free_port

needs_pdsh = pytest.mark.skipif(shutil.which("pdsh") is None, reason="needs pdsh")


def hosts(address: str | None = "127.0.0.1") -> list[Host]:
    facts = {"address": address, "free_port": free_port()}
    return [Host(name, 1, is_remote=True, facts=facts) for name in ("one", "two")]


@needs_pdsh
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("two", "seconds", "launch_seconds", "found"),
    [
        ("export GLOO_SOCKET_IFNAME=nosuch0", 40, 120, "nosuch0"),  # of which a busy machine takes half to import
        # its ranks look for the master where nothing listens, as behind a firewall
        ("command=$(echo \"$command\" | sed 's/--master_port=[0-9]*/--master_port=9/')", 5, 120, "not done after 5 s"),
        # the launcher's time is over; what was said before tells why
        ("echo 'error: no route' >&2; exec sleep 60", 2, 4, "no route"),
        (NEVER_ANSWERS, 2, 2, "not done after 2 s"),
    ],
)
def test_a_network_that_fails_ends_in_time_with_its_remedy(tmp_path, monkeypatch, two, seconds, launch_seconds, found):
    monkeypatch.setattr(launch, "LAUNCH_SECONDS", launch_seconds)
    cluster = FakeCluster(tmp_path, one="", two=two)
    cluster.join(monkeypatch)
    row = check_bandwidth(hosts(), cluster.hostfile, seconds)
    assert row.result == "FAIL" and found in row.found
    for word in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", ".deepspeed_env", "firewall"):
        assert word in row.remedy


@pytest.mark.distributed
def test_a_port_that_was_taken_since_is_named():
    facts = {"address": "127.0.0.1", "free_port": free_port()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", facts["free_port"]))
        taken.listen()
        row = check_bandwidth([Host("this machine", 1, is_remote=False, facts=facts)], None, 120)
    assert row.result == "FAIL" and f"port {facts['free_port']} of 127.0.0.1 is in use" in row.found
    assert "doctor` again" in row.remedy


def test_without_pdsh_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    row = check_bandwidth(hosts(), tmp_path / "hostfile", seconds=1)
    assert row.result == "FAIL" and "apt install pdsh" in row.remedy


@needs_pdsh
def test_a_master_without_an_address_is_named(tmp_path):
    row = check_bandwidth(hosts(address=None), tmp_path / "hostfile", seconds=1)
    assert row.result == "FAIL" and "`hostname -I` of one" in row.found and "give one an address" in row.remedy


def test_a_master_that_plain_ssh_does_not_reach_is_a_warning(tmp_path, monkeypatch):
    configured = f'case "$options" in *" -F "*) ;; *) {UNREACHABLE} ;; esac'
    FakeCluster(tmp_path, one=configured).join(monkeypatch)
    assert list(check_master(hosts())) == []
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-F ssh_config")
    [row] = check_master(hosts())
    assert row.result == "warning" and "--no_ssh_check --master_addr 127.0.0.1" in row.remedy
    (tmp_path / "one").write_text("")
    assert [row.result for row in check_master(hosts())] == ["ok"]
