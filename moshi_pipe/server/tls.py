"""TLS: certificates from files, or one made on demand."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moshi_pipe.server.options import ServerOptions

_DAYS: Final = 365
_SPARE_DAYS: Final = 30  # a kept one is made anew when it has fewer left
_CERT: Final = "moshi-pipe.crt"
_KEY: Final = "moshi-pipe.key"


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate that no browser knows.

    Attributes:
        cert: Its PEM file.
        key: The PEM file of its key; nobody else may read it.
        fingerprint: SHA-256 of it, as browsers show it.
    """

    cert: Path
    key: Path
    fingerprint: str


def prepare_tls(
    options: ServerOptions, folder: Path | None = None
) -> tuple[ServerOptions, SelfSigned | None]:
    """Check the certificate, or make one; to be called once, before anything is served.

    Args:
        options: Of the server.
        folder: Where a certificate that is made is kept; None is the user's cache, so that a
            browser which was told to trust it still does the next day.

    Returns:
        The options, with the files of a certificate that was made in ``tls_cert`` and ``tls_key``;
        and that certificate.

    Raises:
        ConfigError: The certificate cannot be used, and why.
        BackendError: One should be made, and ``cryptography`` is not installed.
    """
    if options.self_signed and options.tls_cert is None:
        made = self_signed(options.host, _cache() if folder is None else folder)
        done = replace(options, tls_cert=str(made.cert), tls_key=str(made.key), self_signed=False)
        return done, made
    tls_context(options)
    return options, None


def tls_context(options: ServerOptions) -> ssl.SSLContext | None:
    """What speaks TLS with the files of the options; None where there are none.

    Raises:
        ConfigError: A file is missing, is no PEM, does not fit the other, or has expired.
    """
    if options.tls_cert is None or options.tls_key is None:
        return None
    cert, key = Path(options.tls_cert), Path(options.tls_key)
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"server.{name} cannot be read",
                got=f"{path}: {error.strerror}",
                wanted="a PEM file",
            ) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "the server's certificate cannot be used", got=_why(error, cert, key), **_wanted()
        ) from error
    _check_dates(cert)
    return context


def self_signed(host: str, folder: Path) -> SelfSigned:
    """A certificate for a host, ``localhost`` and the addresses of this machine.

    One that was made before is taken while it is valid and names them all.

    Args:
        host: What the server listens on.
        folder: Where it is kept; nobody else may look into it.

    Raises:
        BackendError: ``cryptography`` is not installed.
        ConfigError: The folder cannot be written.
    """
    names = machine_addresses(host)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(folder, 0o700)
        cert, key = folder / _CERT, folder / _KEY
        kept = _kept(cert, key, names)
        if kept is not None:
            return SelfSigned(cert, key, kept)
        cert_pem, key_pem, fingerprint = _make(names)
        _write_private(key, key_pem)
        _write_private(cert, cert_pem)
    except OSError as error:
        raise ConfigError(
            "a certificate cannot be kept",
            got=f"{folder}: {error.strerror}",
            fix="set XDG_CACHE_HOME to a folder that can be written, or server.tls_cert",
        ) from error
    return SelfSigned(cert, key, fingerprint)


def machine_addresses(host: str) -> list[str]:
    """Names and addresses under which a server may be reached, ``localhost`` first."""
    names = ["localhost", "127.0.0.1", "::1"]
    if host not in ("", "0.0.0.0", "::"):
        return list(dict.fromkeys([*names, host.strip("[]")]))
    own = socket.gethostname()
    found = [own, f"{own.partition('.')[0]}.local"]
    with suppress(OSError):  # a machine need not know its own name
        found += [str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(own, None)]
    found += _outward()
    return list(dict.fromkeys([*names, *found]))


def _outward() -> list[str]:
    """The address that packets to elsewhere leave from; none is sent."""
    addresses = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                addresses.append(str(probe.getsockname()[0]))
        except OSError:
            continue
    return addresses


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "moshi-pipe" / "tls"
    except RuntimeError:  # there is no home
        return Path(tempfile.mkdtemp(prefix="moshi-pipe-tls-"))


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody else may read, and never half of one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # of mode 600
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(name, path)


def _make(names: Iterable[str]) -> tuple[bytes, bytes, str]:
    """PEM of a certificate and of its key, and the fingerprint."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise BackendError(
            "server.self_signed=true needs a package that is not installed",
            got="no cryptography",
            fix="pip install 'moshi-pipe[server]'",
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "moshi-pipe")])
    now = datetime.datetime.now(datetime.timezone.utc)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of clients differ
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return cert.public_bytes(serialization.Encoding.PEM), key_pem, _print(cert)


def _kept(cert: Path, key: Path, names: Iterable[str]) -> str | None:
    """The fingerprint of a certificate that was made before; None if it will not do."""
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        loaded = x509.load_pem_x509_certificate(cert.read_bytes())
        san = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, _no_password)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return None
    left = loaded.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    if left < datetime.timedelta(days=_SPARE_DAYS):
        return None
    return _print(loaded) if set(_alternatives(names)) <= set(san) else None


def _alternatives(names: Iterable[str]) -> list[Any]:
    from cryptography import x509

    alternatives: list[Any] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if name.isascii():
                alternatives.append(x509.DNSName(name))
    return alternatives


def _print(cert: Any) -> str:
    from cryptography.hazmat.primitives import hashes

    return ":".join(f"{byte:02X}" for byte in cert.fingerprint(hashes.SHA256()))


def _check_dates(cert: Path) -> None:
    """Refuse a certificate whose time has not come, or is over."""
    decoded: dict[str, Any] = ssl._ssl._test_decode_cert(str(cert))  # type: ignore[attr-defined]
    now = datetime.datetime.now(datetime.timezone.utc).timestamp()
    begins, ends = (ssl.cert_time_to_seconds(decoded[key]) for key in ("notBefore", "notAfter"))
    if now > ends:
        raise ConfigError(
            "the server's certificate has expired",
            got=f"{cert}, valid until {decoded['notAfter']}",
            fix="renew it, or set server.self_signed=true instead",
        )
    if now < begins:
        raise ConfigError(
            "the server's certificate is not valid yet",
            got=f"{cert}, valid from {decoded['notBefore']}",
            fix="check the clock of this machine",
        )


def _why(error: Exception, cert: Path, key: Path) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {cert}"
    if isinstance(error, ValueError):
        return f"{key} is locked with a password"
    text = (cert.read_bytes(), key.read_bytes())
    if b"CERTIFICATE" not in text[0]:
        return f"{cert} holds no certificate"
    return f"{key} holds no private key" if b"PRIVATE KEY" not in text[1] else str(error)


def _wanted() -> dict[str, str]:
    return {
        "wanted": "PEM files of a certificate chain and of its key, without a password",
        "fix": "check server.tls_cert and server.tls_key, or set server.self_signed=true instead",
    }


def _no_password() -> str:
    raise ValueError("a key with a password")
