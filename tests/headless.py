"""A page opened in a real browser, headless and without a network, for the tests that look at pages."""

from __future__ import annotations

import shutil
import subprocess

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(url, profile, *arguments):
    """Open a page headless and return what came of it."""
    return subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            *arguments,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
