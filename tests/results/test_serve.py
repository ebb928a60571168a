"""The page of a run, live: what is answered, to whom, and that it is new when the run goes on."""

import http.client
import json
import threading
from types import SimpleNamespace

import pytest
import shown_runs

from barlow_jax.errors import UserError
from barlow_jax.results import serve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shown_runs.made(tmp_path_factory.mktemp("runs") / "a", pictures=1)


@pytest.fixture(scope="module")
def port(run):
    with serve.opened([run], 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def asked(port, path, **headers):
    """(status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_asks_its_own_address_and_no_other(port):
    status, text = asked(port, "/")
    assert status == 200 and "connect-src 'self'" in text and "no answer: " in text


def test_what_is_new_is_sent_once(port, run):
    status, body = asked(port, "/data?")
    first = json.loads(body)
    assert status == 200 and first["sections"].keys() >= {"verdict", "config", "curves", "events"}
    assert asked(port, f"/data?{first['stamp']}") == (204, "")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 290, "loss": 1.25}) + "\n")
    status, body = asked(port, f"/data?{first['stamp']}")
    second = json.loads(body)
    assert status == 200 and second["stamp"] != first["stamp"] and second["curves"] != first["curves"]


def test_no_file_of_the_disk_is_served(port):
    for path in (
        "/config.json",
        "/metrics.jsonl",
        "//etc/passwd",
        "/../config.json",
        "/data/../log.txt",
        "/report.html",
    ):
        assert asked(port, path)[0] == 404, path


def test_a_page_from_elsewhere_gets_nothing(port):
    assert asked(port, "/data", Host=f"elsewhere.example:{port}")[0] == 403
    assert asked(port, "/data", Host="127.0.0.1.elsewhere.example")[0] == 403
    assert asked(port, "/data", Host=f"localhost:{port}")[0] == 200


def test_a_browser_that_goes_away_is_nothing_to_be_told_of(run, capsys):
    with serve.opened([run], 0) as server:
        for error in (BrokenPipeError(), ConnectionResetError(), KeyError("a fault of ours")):
            try:
                raise error
            except (OSError, KeyError):
                server.handle_error(None, ("127.0.0.1", 1))
    told = capsys.readouterr().err
    assert "a fault of ours" in told and "BrokenPipe" not in told and "ConnectionReset" not in told


def test_what_is_wrong_is_one_sentence(port, run, tmp_path):
    def started(*named, port=0):
        serve.main(SimpleNamespace(arguments=[*map(str, named)], port=port))

    with pytest.raises(
        UserError, match=rf"^Port {port} is in use; give another, such as --port=0 for any that is free\.$"
    ):
        started(run, port=port)
    with pytest.raises(UserError, match="nowhere is no folder"):
        started(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No folder is given"):
        started()
    with pytest.raises(UserError, match="--port is 65536; it must be 0 to 65535"):
        started(run, port=65536)


def test_a_file_that_is_damaged_is_said_and_asked_for_again(port, run):
    (run / "results.jsonl").write_text("none of ours\n")
    status, text = asked(port, "/data?0")
    assert status == 503 and "Line 1 of" in text
    (run / "results.jsonl").unlink()
    assert asked(port, "/data?0")[0] == 200
