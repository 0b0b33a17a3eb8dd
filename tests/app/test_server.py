import os
import socket
import sys

import pytest

from multicoco.app import server
from multicoco.cli import main
from multicoco.engine.deepspeed import free_port
from multicoco.errors import UserError


def test_it_is_served_to_this_machine_alone_and_tells_nobody(asker):
    port = free_port()
    page, url = server.open_page(asker, [], "127.0.0.1", port)
    try:
        assert url == f"http://127.0.0.1:{port}/" and not page.share and not page.analytics_enabled
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConnectionRefusedError):  # another address of this machine
            socket.create_connection(("127.0.0.2", port))
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be served.*another --port"):
            server.open_page(asker, [], "127.0.0.1", port)
    finally:
        page.close()


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "nowhere"]) == 1
    assert "pip install 'multicoco[app]'" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_named_and_nothing_is_left(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "uploads"
    monkeypatch.setattr(server.tempfile, "mkdtemp", lambda **_: folder.mkdir() or str(folder))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert main(["app", "nowhere/at/all"]) == 1
    assert "nowhere/at/all" in capsys.readouterr().err and not folder.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_says_where_it_is_and_who_else_can_ask(trained_home, monkeypatch, capsys, host):
    waited = []

    class Page:
        def block_thread(self):
            waited.append(True)

    given = []
    monkeypatch.setattr(server, "open_page", lambda asker, *rest: given.append(rest) or (Page(), "http://there/"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    options = [] if host == "127.0.0.1" else ["--host", host, "--port", "80"]
    assert main(["app", str(trained_home / "runs" / "run"), *options]) == 0
    [(examples, *where)] = given
    assert len(examples) == 6 and where == ([host, 7860] if not options else [host, 80]) and waited
    said = capsys.readouterr()
    assert "http://there/" in said.out and ("can ask, too" in said.err) is bool(options)
