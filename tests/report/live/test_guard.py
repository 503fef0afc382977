"""Who is answered: this machine's own pages, and nobody who only claims to be."""

import re

import pytest
from starlette.testclient import TestClient
from tests.report.run import samples

from signalprop.report.live import guard
from signalprop.report.live.app import Live


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("runs") / "run.sp", steps=range(0, 2000, 50))


@pytest.fixture
def client(path):
    with TestClient(Live([path]).app, base_url="http://127.0.0.1") as client:
        yield client


ADDRESSES = ["/", "/assets/live.js", "/assets/plotly.min.js", "/api/overview", "/api/timeline"]


@pytest.mark.parametrize("address", [*ADDRESSES, "/nothing", "/api/timeline?columns=1"])
def test_headers_of_every_answer(client, address):
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "localhost.evil", "",
     "127.0.0.1@evil.example", "10.0.0.7", "[::2]", "127.0.0.1:80:80", "127.0.0.1:x"],
)  # fmt: skip
def test_another_name_is_refused(client, address, host):
    reply = client.get(address, headers={"host": host})
    assert reply.status_code == 421
    assert len(reply.content) < 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8000", "LOCALHOST",
                                  "[::1]:8000"])  # fmt: skip
def test_own_names(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_get(client, method):
    reply = client.request(method, "/api/overview")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "address",
    ["/run.sp", "/../run.sp", "/assets/", "/assets/../run.sp", "/assets/%2e%2e/app.py", "/assets",
     "/assets/..%2f..%2fapp.py", "/api", "/api/", "/api/runs", "/index.html", "/assets/app.py",
     "/static/report.js", "/assets/report.js", "/docs", "/openapi.json", "/favicon.ico",
     "/assets/%00", "/%2fetc%2fpasswd", "/events/", "/api/timeline/"],
)  # fmt: skip
def test_nothing_else_is_there(client, address):
    reply = client.get(address, follow_redirects=False)
    assert reply.status_code == 404
    assert reply.text == "There is nothing here.\n"


@pytest.mark.parametrize("mode", ["cors", "no-cors", "same-origin"])
def test_other_pages_may_not_ask(client, mode):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
    assert client.get("/api/overview", headers=headers).status_code == 403
    headers["sec-fetch-site"] = "same-origin"
    assert client.get("/api/overview", headers=headers).status_code == 200


def test_long_questions(client):
    assert client.get("/api/overview?" + "a" * 5000).status_code == 414


def test_twice_the_same_parameter(client):
    reply = client.get("/api/timeline?columns=20&columns=30")
    assert reply.status_code == 400
    assert reply.json() == {"error": "a parameter is given twice"}


def test_the_page_holds_no_script_of_its_own(client):
    text = client.get("/").text
    assert re.findall(r"<script(?![^>]* src=)", text) == []
    assert re.findall(r"<style| style=| on[a-z]+=", text) == []
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert address.startswith(("/assets/", "data:,"))


def test_assets_are_kept_by_browsers(client):
    first = client.get("/assets/plotly.min.js")
    assert first.status_code == 200
    again = client.get("/assets/plotly.min.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


def test_paths_of_this_machine_stay_here(client, path):
    for address in ("/", "/api/overview", "/api/timeline", "/api/timeline?statistic=none"):
        assert str(path.parent) not in client.get(address).text


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("127.3.2.1", True),
     ("0.0.0.0", False), ("::", False), ("10.1.2.3", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host, inside):
    assert guard.loopback(host) is inside
    assert guard.names(host)[1] is not inside


def test_a_server_for_the_network_takes_any_address_but_no_name(path):
    with TestClient(Live([path], host="0.0.0.0").app, base_url="http://127.0.0.1") as client:
        assert client.get("/", headers={"host": "10.0.0.7:8000"}).status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
