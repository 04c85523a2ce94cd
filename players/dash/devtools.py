"""Headless Chromium over its DevTools pipe (file descriptors 3 and 4, JSON ended by NUL): no port, no driver, no package."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from testbed import host
from testbed.errors import TestbedError, UserError
from testbed.user import DIE_WITH_STARTER

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-breakpad",
    "--mute-audio",
    "--remote-debugging-pipe",
)
FULL_PACE = ("--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows")
"""For pages whose timers count: nothing is slowed down because nobody looks."""
PATIENCE_S = 60.0
CLOSE_S = 10.0
DEAD = ("Inspector.targetCrashed", "Target.targetCrashed", "Inspector.detached")
WHOLE_GROUP = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Root's browser lives in a process namespace of its own: when it ends, however it does, the kernel ends all that it started."""


class BrowserGone(TestbedError):
    """The browser, or its page, has ended or does not answer."""


class BrowserCrashed(BrowserGone):
    """The browser or its page has ended."""


class BrowserStuck(BrowserGone):
    """It does not answer."""


class Browser:
    """One page of a running Chromium; `events` holds what it reported. What waits for a page that is gone raises `BrowserGone`."""

    def __init__(self, to_browser: int, from_browser: int, patience_s: float = PATIENCE_S) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer = b""
        self._last_id = 0
        self.session: str | None = None
        self.gone = False
        """It has ended or fell silent: it is asked no more."""
        self.patience_s = patience_s
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except OSError as error:
            raise self._lost(BrowserCrashed(f"the browser has ended ({error.strerror})")) from None
        while True:
            answer = self._receive()
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Wait for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], self.patience_s)
            if not ready:
                raise self._lost(BrowserStuck(f"the browser did not answer for {self.patience_s:g} s"))
            data = os.read(self._in, 1 << 20)
            if not data:
                raise self._lost(BrowserCrashed("the browser has ended"))
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") in DEAD and self.session:
            raise self._lost(BrowserCrashed(f"the browser's page has ended ({message['method']})"))
        return message

    def _lost(self, why: BrowserGone) -> BrowserGone:
        self.gone = True
        return why

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def open(self, url: str, size: tuple[int, int] | None = None) -> None:
        """Load a page in a new tab, with everything that it asks for and complains of reported from its first moment on.

        `size` is the page's own, pixels; by default it fills its window.
        """
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Inspector"):
            self.call(f"{domain}.enable")
        if size:
            self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def complaints(self) -> list[Any]:
        """Console errors and warnings, uncaught exceptions, log entries."""
        self.evaluate("1")
        wanted = {"Runtime.exceptionThrown", "Log.entryAdded"}
        found = [e["params"] for e in self.events if e.get("method") in wanted]
        console = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return found + [c for c in console if c["type"] in ("error", "warning", "assert")]

    def requested(self) -> list[str]:
        """Every address that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]


def program() -> str:
    """The browser's program; `UserError` when none is installed."""
    if found := host.browser():
        return found
    raise UserError(f"no browser is installed, wanted one of {', '.join(host.BROWSERS)}: scripts/setup browser")


def take_priority(nice: int) -> None:
    """Give this process a nice value, and its session too: the kernel shares processors among sessions first (sched(7), autogroups)."""
    if nice:
        with contextlib.suppress(OSError):  # only root may ask for more than its share
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            with open("/proc/self/autogroup", "w") as group:
                group.write(str(nice))


def _prepare_child(reading: int, writing: int, nice: int) -> None:
    """In the child: put the pipe's ends where chromium looks for them."""
    take_priority(nice)
    reading, writing = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (reading, writing))
    os.dup2(reading, 3)
    os.dup2(writing, 4)


@contextlib.contextmanager
def chromium(
    width: int = 1280,
    height: int = 900,
    flags: Sequence[str] = (),
    errors: IO[bytes] | int = subprocess.DEVNULL,
    patience_s: float = PATIENCE_S,
    nice: int = 0,
) -> Iterator[Browser]:
    """A Chromium with a fresh profile; ended with all its processes, whatever happens. Its standard error goes to `errors`.

    It dies with the thread that starts it. The profile lies in `TMPDIR`: whoever may kill this process gives it a folder that it clears.
    """
    found = program()
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, prefix="netllm-browser-") as profile:
        whole = WHOLE_GROUP if os.geteuid() == 0 else ()
        command = [*DIE_WITH_STARTER, *whole, found, *FLAGS, *flags]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=lambda: _prepare_child(child_in, child_out, nice),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "HOME": profile},
            start_new_session=True,
        )
        os.close(child_in)
        os.close(child_out)
        browser = Browser(to_browser, from_browser, patience_s)
        try:
            yield browser
        finally:
            _close(browser, process)
            os.close(to_browser)
            os.close(from_browser)


def _close(browser: Browser, process: "subprocess.Popen[bytes]") -> None:
    """End the browser: asked first, if it still listens, then its whole group."""
    if not browser.gone:
        browser.session, browser.patience_s = None, CLOSE_S
        with contextlib.suppress(BrowserGone, RuntimeError, subprocess.TimeoutExpired):
            browser.call("Browser.close")
            process.wait(CLOSE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
