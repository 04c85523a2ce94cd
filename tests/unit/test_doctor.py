"""The doctor: verdicts, advice and exit code from made-up hosts, and the probes on this one."""

import io
import json
import os
import sys

import pytest
from rich.console import Console

from testbed import doctor, host
from testbed.doctor import LACKS, Finding, examine, main
from testbed.errors import UserError
from testbed.host import host_facts, versions
from testbed.setup import install, native


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading PyTorch takes seconds; what the probe prints is made up."""
    real = host.run

    def run(command, *arguments, **keywords):
        if "torch" in command[-1]:
            return 0, json.dumps(["2.13.0", False, ["cache/smollm2"]]), ""
        return real(command, *arguments, **keywords)

    monkeypatch.setattr(host, "run", run)


def found(name: str) -> Finding:
    return next(finding for finding in examine() if finding.name == name)


def test_every_finding_that_can_be_a_lack_has_its_advice():
    names = [finding.name for finding in examine()]
    assert len(names) == len(set(names))
    assert set(names) - {"kernel"} == set(LACKS)


@pytest.mark.parametrize("name", LACKS)
def test_a_lack_says_what_it_means_and_what_to_do(name):
    bad = doctor._judge(name, False, "seen")
    assert bad.verdict == ("stop" if LACKS[name].stops else "lack")
    assert LACKS[name].meaning in bad.advice
    assert LACKS[name].remedy in bad.advice
    assert doctor._judge(name, True, "seen").advice == ""


@pytest.mark.parametrize(
    ("stops", "code", "last"),
    [([], 0, "The main job can run here."), (["root", "Mininet"], 1, "The main job can't run here yet: root, Mininet.")],
)
def test_the_exit_code_tells_whether_the_main_job_can_run(monkeypatch, capsys, stops, code, last):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("kernel", "ok", "6.1"), *(Finding(name, "stop", "no") for name in stops)])
    assert main([]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_json_holds_findings_and_facts(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("netem", "lack", "no")])
    assert main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert told["findings"] == [{"name": "netem", "verdict": "lack", "seen": "no", "advice": Finding("netem", "lack", "no").advice}]
    assert told["host"]["cores"] >= 1
    assert told["versions"]["python"]


def test_unknown_arguments_are_refused():
    with pytest.raises(UserError, match="--jsn"):
        main(["--jsn"])


def test_markup_in_what_was_seen_is_shown_as_it_is(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=out, width=100))
    doctor._show([Finding("netem", "lack", "[red]odd[/] [x]")])
    assert "[red]odd[/] [x]" in out.getvalue()


def test_without_rich_the_table_is_plain(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    doctor._show([Finding("root", "stop", "no")])
    assert capsys.readouterr().out.startswith("stop     root: no\n")


def test_a_user_is_told_what_only_root_can_try(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found("root").verdict == "stop"
    assert {found(name).verdict for name in ("network namespaces", "TAP devices", "netem")} == {"unknown"}


def test_what_the_kernel_says_reaches_the_table(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "namespace_made", lambda: "unshare failed: Operation not permitted")
    monkeypatch.setattr(host, "tap_made", lambda: "")
    assert found("network namespaces") == Finding("network namespaces", "stop", "unshare failed: Operation not permitted")
    assert found("TAP devices").verdict == "ok"


def test_late_timers_and_refused_real_time_are_lacks(monkeypatch):
    monkeypatch.setattr(host, "real_time_allowed", lambda: False)
    monkeypatch.setattr(host, "wake_up_lateness_s", lambda real_time: (0.0001, 0.02))
    assert found("real-time scheduling").verdict == "lack"
    assert found("timer lateness") == Finding("timer lateness", "lack", "median 0.100 ms, worst 20.000 ms, in 200 sleeps of 1 ms")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(install, "lacks", lambda recipe, groups: ("Debian package mininet", "the rest"))
    assert found("packages") == Finding("packages", "stop", "missing: Debian package mininet; the rest")


def test_the_relay_is_run_and_not_only_looked_at(monkeypatch, tmp_path):
    program = tmp_path / "relay"
    monkeypatch.setattr(native, "built", lambda checkout: program)
    assert found("relay in C") == Finding("relay in C", "lack", f"{program} does not run here: {program}: No such file or directory")
    program.write_text("#!/bin/sh\necho usage: relay >&2\nexit 2\n")
    program.chmod(0o755)
    assert found("relay in C") == Finding("relay in C", "ok", str(program))
    monkeypatch.setattr(native, "built", lambda checkout: None)
    monkeypatch.setattr(native, "fault", lambda checkout: "no C compiler")
    assert found("relay in C") == Finding("relay in C", "lack", "no C compiler")


def test_a_broken_pytorch_shows_its_last_line(monkeypatch):
    monkeypatch.setattr(host, "run", lambda *a, **k: (1, "", "Traceback\nOSError: libtorch_cpu.so: cannot open"))
    assert found("timer lateness").verdict == "unknown", "a probe that fails doesn't end the visit"
    assert found("PyTorch") == Finding("PyTorch", "stop", "OSError: libtorch_cpu.so: cannot open")


def test_facts_are_plain_values_and_quick_to_have():
    facts = host_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert {"kernel", "cpu_model", "cores", "memory_bytes", "real_time", "load_1min"} <= set(facts)
    assert facts["memory_bytes"] > 1e8


def test_versions_are_read_without_importing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert versions()["torch"].startswith("2.")


def test_a_probe_that_fails_says_why():
    code, out, errors = host.run(["nonexistent-program"])
    assert (code, out) == (127, "")
    assert "nonexistent-program" in errors
    assert host.run(["sleep", "5"], timeout_s=0.05)[0] == 124
    with pytest.raises(OSError, match="KeyError"):
        host.probe("unknown")


def test_wake_ups_are_measured_in_a_child():
    median_s, worst_s = host.wake_up_lateness_s(real_time=False)
    assert 0 <= median_s <= worst_s


@pytest.mark.parametrize(
    "flags, unit",
    [("fpu avx2 fma", ""), ("avx512f avx512_vnni", ""), ("avx512f avx512_bf16", "avx512_bf16"), ("asimd bf16 i8mm", "bf16")],
)
def test_units_for_bfloat16_are_the_processors_flags(monkeypatch, flags, unit):
    monkeypatch.setattr(host, "cpu_field", lambda name: flags if name == "flags" else "")
    assert host.bf16_units() == unit


def test_files_that_are_not_there_are_no_error(monkeypatch):
    assert host.read_number("/nonexistent") is None
    monkeypatch.setattr(host, "_read", lambda path: "")
    assert host.cpu_field("model name") == ""
    assert host.bf16_units() == ""
    assert host.congestion_controls() == ()
