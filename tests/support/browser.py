"""Chromium with a microphone that is a file, for tests and pictures of the web page."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
"""The browser; empty if there is none."""

ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
"""What it starts with; ``--use-file-for-fake-audio-capture=WAV`` chooses what is said, looping."""
