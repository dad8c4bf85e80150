"""A site's home folder: its policy, keys and ledger, and what must survive between two messages.

Whatever is secret lies under `private/` (mode 0700), wrapped with a key that never leaves it.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secure_fed.client.policy import Policy, load_policy, save_policy
from secure_fed.errors import ConfigError
from secure_fed.files import write_durably
from secure_fed.identity import SigningKey

_NONCE = 12


class Home:
    """One site's folder. Everything that a site remembers is here, so any process can go on for it."""

    def __init__(self, root: Path) -> None:
        """Open an existing home; raises ConfigError where it is none."""
        self.root = root
        if not self.policy_path.is_file():
            raise ConfigError(f"{root} is not a site's home: it has no policy.yaml")

    @classmethod
    def create(cls, root: Path, policy: Policy) -> Home:
        """Make a home with fresh keys; raises ConfigError where one stands already."""
        if (root / "policy.yaml").exists():
            raise ConfigError(f"{root} is a site's home already; keys and budget are never overwritten")
        private = root / "private"
        private.mkdir(parents=True, mode=0o700)
        private.chmod(0o700)
        SigningKey.generate().save(private / "identity.pem")
        write_durably(private / "storage.key", secrets.token_bytes(32), overwrite=False)
        save_policy(root / "policy.yaml", policy)
        return cls(root)

    @property
    def policy_path(self) -> Path:
        """The owner's policy."""
        return self.root / "policy.yaml"

    @property
    def ledger_path(self) -> Path:
        """The signed ledger."""
        return self.root / "ledger.jsonl"

    @property
    def private(self) -> Path:
        """The folder that never leaves the site."""
        return self.root / "private"

    def policy(self) -> Policy:
        """The owner's policy, read from its file."""
        return load_policy(self.policy_path)

    def signing_key(self) -> SigningKey:
        """The site's Ed25519 identity."""
        return SigningKey.load(self.private / "identity.pem")

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, encrypted, replacing what was there in one step."""
        nonce = secrets.token_bytes(_NONCE)
        write_durably(self._path(name), nonce + self._cipher().encrypt(nonce, data, name.encode()), overwrite=True)

    def get(self, name: str) -> bytes | None:
        """What was kept under `name`, None where there is nothing; raises ConfigError where it was changed.

        A journal that cannot be read is not an empty one: the site stops rather than forget what it released.
        """
        path = self._path(name)
        try:
            wrapped = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._cipher().decrypt(wrapped[:_NONCE], wrapped[_NONCE:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                f"{path} was changed or belongs to another home: the site takes part in nothing until its operator "
                "has found out why"
            ) from error

    def drop(self, name: str) -> None:
        """Forget `name`. The bytes may survive on the medium; the key beside them is the site's to guard."""
        self._path(name).unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Append a line to the site's own log, which nobody else reads."""
        with (self.private / "site.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")

    def _path(self, name: str) -> Path:
        return self.private / f"{name}.bin"

    def _cipher(self) -> AESGCM:
        return AESGCM((self.private / "storage.key").read_bytes())
