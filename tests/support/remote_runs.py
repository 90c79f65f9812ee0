"""Runs whose model is remote, and certificates for the servers of tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from moshi_pipe.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from support.rust_like_server import RustLikeServer

FRAME = 1920
FRAMES = 12


def write_talk(folder: Path) -> Path:
    """Write a recording of twelve frames, less a little."""
    generator = np.random.default_rng(7)
    samples = np.cumsum(generator.normal(0, 0.01, FRAMES * FRAME - 100))
    samples = (0.3 * np.sin(samples)).astype(np.float32)
    path = folder / "talk.wav"
    soundfile.write(path, samples, 24000, subtype="PCM_16")
    return path


def run(server: RustLikeServer | str, talk: Path, *words: str, pace: str = "null") -> int:
    """Send a recording to a server; gives the exit code."""
    url = server if isinstance(server, str) else server.url
    out = talk.parent / "out"
    return main(
        [
            *("model=remote", f"model.url={url}", f"model.pace={pace}", "seed=5"),
            *(f"source.path={talk}", f"output_dir={out}", *words),
        ]
    )


def record(talk: Path) -> dict[str, Any]:
    """What the last run wrote about its session."""
    text = (talk.parent / "out" / "talk.session.json").read_text()
    return dict(json.loads(text))


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed one for 127.0.0.1, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    import datetime
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(cert_path), str(key_path)
