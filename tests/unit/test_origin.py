"""The origin: exact bytes, the start datagram before the first byte, refusals, and its log; on real loopback sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import msgspec
import pytest

from controllers.api import Manifest
from controllers.config import read_config
from players import origin
from players.config import OriginConfig, OriginRequest
from testbed.errors import UserError
from tests.unit.loopback import VIDEO, listening, running

Log = list[OriginRequest]


def with_origin(test: Callable[[str, aiohttp.ClientSession, Log], Awaitable[Any]], **config: Any) -> Any:
    """Run `test(url, client, log)` against an origin."""

    async def run() -> Any:
        log: Log = []
        app = origin.application(OriginConfig(host="127.0.0.1", videos=(VIDEO,), **config))
        with patch.object(origin, "emit", log.append):
            async with listening(app) as url, aiohttp.ClientSession() as client:
                return await test(url, client, log)

    return asyncio.run(run())


def test_the_manifest_and_exactly_its_bytes() -> None:
    big = Manifest("big", 4.0, (1, 2), ((1, 3 * len(origin.PATTERN) + 17),))

    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        for video in (VIDEO, big):
            async with client.get(f"{url}/{video.name}/manifest.json") as response:
                assert msgspec.json.decode(await response.read(), type=Manifest) == video
            for chunk, sizes_bytes in enumerate(video.sizes_bytes):
                for level, size_bytes in enumerate(sizes_bytes):
                    async with client.get(f"{url}/{video.name}/{level}/{chunk}", headers={"X-Session": "s"}) as response:
                        body = await response.read()
                        assert response.status == 200
                        assert response.headers["Content-Length"] == str(size_bytes)
                        assert response.headers["Cache-Control"] == "no-store"
                        assert len(body) == size_bytes
                        assert body == (origin.PATTERN * (size_bytes // len(origin.PATTERN) + 1))[:size_bytes]
        media = [row for row in log if row.session == "s"]
        assert [row.bytes_sent for row in media] == [size for video in (VIDEO, big) for sizes in video.sizes_bytes for size in sizes]
        assert all(row.complete and row.status == 200 and row.end_s >= row.at_s for row in log)

    async def run() -> None:
        log: Log = []
        with patch.object(origin, "emit", log.append):
            async with listening(origin.application(OriginConfig(host="", videos=(VIDEO, big)))) as url, aiohttp.ClientSession() as client:
                await test(url, client, log)

    asyncio.run(run())


def test_start_is_sent_once_a_session_before_the_first_media_byte(tmp_path: Path) -> None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    link.bind(str(tmp_path / "link"))

    def starts() -> int:
        count = 0
        while True:
            try:
                assert link.recv(100) == b"start"
            except BlockingIOError:
                return count
            count += 1

    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        async with client.get(f"{url}/tiny/manifest.json", headers={"X-Session": "a"}) as response:
            await response.read()
        assert starts() == 0
        async with client.get(f"{url}/tiny/9/0", headers={"X-Session": "a"}) as response:
            assert response.status == 404
        assert starts() == 0
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(b"GET /tiny/0/0?session=a HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(1)
        assert starts() == 1  # told by the time the first byte is here
        writer.close()
        for session, wanted in (("a", 0), ("b", 1), ("b", 0), ("", 0)):
            async with client.get(f"{url}/tiny/1/1", headers={"X-Session": session}) as response:
                await response.read()
            assert starts() == wanted
        assert [row.session for row in log if row.started] == ["a", "b"]

    with link:
        with_origin(test, start_socket=str(tmp_path / "link"))


def test_a_link_that_cannot_be_told_is_a_refusal_not_a_silent_trial(tmp_path: Path) -> None:
    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        for _ in range(2):
            async with client.get(f"{url}/tiny/0/0", headers={"X-Session": "a"}) as response:
                assert response.status == 503
                assert "could not be told to start: No such file" in await response.text()

    with_origin(test, start_socket=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/", "no such path"),
        ("/tiny", "no such path"),
        ("/tiny/0/0/", "no such path"),
        ("/tiny/00/0", "no such path"),
        ("/tiny/-1/0", "no such path"),
        ("/tiny/0/%D9%A1", "no such path"),
        ("/tiny/3/0", "no level 3, wanted 0 to 2"),
        ("/tiny/0/12", "no chunk 12, wanted 0 to 11"),
        ("/tiny/0/999999999", "no chunk"),
        ("/tiny/999999999999999999999/0", "no such path"),
        ("/other/0/0", "no video 'other', wanted one of tiny"),
        ("/other/manifest.json", "no video 'other'"),
        ("/../../etc/passwd", "no such path"),
        ("/tiny/%2e%2e/%2e%2e/etc/passwd", "no such path"),
        ("//tiny/0/0", "no such path"),
        ("/tiny/0/0%00", "no such path"),
    ],
)
def test_anything_outside_the_manifest_is_404_and_a_sentence(path: str, sentence: str) -> None:
    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 404 ")
        assert sentence in answer.partition("\r\n\r\n")[2]
        assert log[-1].status == 404

    with_origin(test)


def test_other_methods_are_405_and_ranges_are_not_served() -> None:
    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
            async with client.request(method, f"{url}/tiny/0/0") as response:
                assert (response.status, response.headers["Allow"]) == (405, "GET")
        async with client.get(f"{url}/tiny/0/0", headers={"Range": "bytes=0-9"}) as response:
            assert (response.status, response.headers["Accept-Ranges"]) == (200, "none")
            assert len(await response.read()) == VIDEO.sizes_bytes[0][0]
        async with client.get(f"{url}/tiny/0/0", headers={"X-Session": "x" * 129}) as response:
            assert response.status == 400

    with_origin(test)


@pytest.mark.parametrize(
    "bad", [b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00garbage\r\n\r\n", b"GET\r\n\r\n"]
)
def test_a_huge_url_and_garbage_are_400_and_the_next_client_is_served(bad: bytes) -> None:
    async def test(url: str, client: aiohttp.ClientSession, log: Log) -> None:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(bad)
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
        writer.close()
        async with client.get(f"{url}/tiny/0/0") as response:
            assert response.status == 200

    with_origin(test)


def test_a_client_that_goes_away_is_logged_as_incomplete() -> None:
    huge = Manifest("huge", 4.0, (1,), ((200_000_000,),))

    async def run() -> OriginRequest:
        logged: asyncio.Future[OriginRequest] = asyncio.get_running_loop().create_future()
        with patch.object(origin, "emit", logged.set_result):
            async with listening(origin.application(OriginConfig(host="", videos=(huge,)))) as url:
                reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
                writer.write(b"GET /huge/0/0 HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readexactly(100_000)
                writer.transport.abort()
                return await asyncio.wait_for(logged, 10)

    row = asyncio.run(run())
    assert not row.complete
    assert row.status == 200
    assert 0 < row.bytes_sent < 200_000_000


def test_one_keep_alive_connection_serves_many_requests() -> None:
    async def run() -> int:
        connections = 0

        async def connected(*_: object) -> None:
            nonlocal connections
            connections += 1

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(connected)
        app = origin.application(OriginConfig(host="", videos=(VIDEO,)))
        async with listening(app) as url, aiohttp.ClientSession(trace_configs=[tracing]) as client:
            for chunk in range(12):
                async with client.get(f"{url}/tiny/{chunk % 3}/{chunk}") as response:
                    await response.read()
            async with client.get(f"{url}/tiny/9/9") as response:
                assert response.status == 404
        return connections

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize(
    ("video", "sentence"),
    [
        (Manifest("a/b", 4.0, (1,), ((1,),)), "video name 'a/b'"),
        (Manifest("v", 4.0, (1, 2), ((1, 2), (1,))), r"video v: chunk 1 has sizes \(1,\), wanted 2"),
        (Manifest("v", 4.0, (1,), ((0,),)), r"chunk 0 has sizes \(0,\), wanted 1 of at least 1 byte"),
    ],
)
def test_a_bad_manifest_is_a_user_error(video: Manifest, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        origin.Origin(OriginConfig(host="", videos=(video,)))


def test_the_process_is_ready_ends_on_sigterm_and_a_port_in_use_is_one_sentence() -> None:
    with running("players.origin", OriginConfig(host="127.0.0.1", videos=(VIDEO,))) as first:
        ready = first.line()
        assert ready["event"] == "ready"
        assert ready["pid"] == first.child.pid
        with running("players.origin", OriginConfig(host="127.0.0.1", port=ready["port"], videos=(VIDEO,))) as second:
            code, lines, errors = second.wait()
        assert (code, lines) == (2, [])
        assert errors == f"origin: can't listen on 127.0.0.1 port {ready['port']}: Address already in use\n"
        assert first.end() == (0, [], "")


@pytest.mark.parametrize("config", ["{", "{}", '{"host":"x","videos":[],"colour":1}', "[" * 100_000, ""])
def test_a_bad_config_is_one_sentence(config: str) -> None:
    with pytest.raises(UserError, match=r"^OriginConfig: [^\n]+$"):
        read_config(OriginConfig, [config])
    with pytest.raises(UserError, match="2 arguments, wanted one"):
        read_config(OriginConfig, [config, config])


def test_a_bad_config_ends_the_process_with_code_2() -> None:
    with running("players.origin", b"") as process:
        code, lines, errors = process.wait()
    assert (code, lines) == (2, [])
    assert errors.startswith("OriginConfig: ")
    assert errors.count("\n") == 1
