"""Where a server of HTTP listens, and with what token: refused before anything is imported that takes long."""

from pathlib import Path

from dcpo_async.errors import ConfigError
from dcpo_async.transport.security import is_loopback

DEFAULT_LISTEN = "127.0.0.1:9557"
MIN_TOKEN_CHARS = 16


def checked_listen(text: str, token_file: Path | None) -> tuple[str, int, str | None]:
    """Host and port of `127.0.0.1:9557`, and the token in a file.

    Raises:
        ConfigError: no such place, a token that is missing off loopback, or one that is too short.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"--http {text}: expected HOST:PORT, such as {DEFAULT_LISTEN}")
    if token_file is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--http {text} is not on this machine alone: name a file with a token, --http-token FILE"
            )
        return host, int(port), None
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"--http-token {token_file}: {error.strerror}") from None
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise ConfigError(
            f"--http-token {token_file}: at least {MIN_TOKEN_CHARS} ASCII characters, as `openssl rand -hex 32` writes"
        )
    return host, int(port), token
