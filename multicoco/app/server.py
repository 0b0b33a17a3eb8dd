"""Serving the page: to this machine alone unless asked otherwise, and without telling anybody."""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multicoco.errors import UserError

if TYPE_CHECKING:
    from multicoco.ask.asker import Asker
    from multicoco.data.example import Example

_LARGEST_UPLOAD = "64mb"


def serve(checkpoint: str, host: str, port: int, examples: Path | None) -> None:
    """Until it is interrupted.

    Raises:
        UserError: Gradio is missing, the checkpoint or the examples cannot be read, or the port is taken.
    """
    uploads = prepare()
    try:
        from multicoco.app.examples import read_examples
        from multicoco.ask.asker import load

        asker = load(checkpoint)
        page, url = open_page(asker, read_examples(asker, examples), host, port)
        print(f"{asker.checkpoint}\n{url} (Ctrl+C ends it)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(f"whoever reaches this machine at port {port} can ask, too", file=sys.stderr, flush=True)
        page.block_thread()
    finally:
        shutil.rmtree(uploads, ignore_errors=True)


def prepare() -> Path:
    """What Gradio reads when it is first imported; returns a folder of this process alone, for what is uploaded.

    Raises:
        UserError: Gradio is not installed.
    """
    uploads = tempfile.mkdtemp(prefix="multicoco-app-")
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads, HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        shutil.rmtree(uploads)
        raise UserError(f"the app is a page of Gradio's ({error}): pip install 'multicoco[app]'") from error
    return Path(uploads)


def open_page(asker: "Asker", examples: "Sequence[Example]", host: str, port: int) -> tuple[Any, str]:
    """Serves from a thread; returns Gradio's page and its address. After `prepare`.

    Raises:
        UserError: the port is taken.
    """
    import gradio

    from multicoco.app.page import build_page
    from multicoco.app.shown import style

    page = build_page(asker, examples)
    # Gradio asks itself whether it is there, which a proxy would not know
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), host]))
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=_LARGEST_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=style(),
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be served ({error}): take another --port") from error
    return page, url
