"""A site's home folder: its policy, keys and ledger, and what must survive between two messages.

Whatever is secret lies under `private/` (mode 0700), wrapped with a key that never leaves it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from secure_fed.client.policy import Policy, load_policy, save_policy
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.files import sync_folder, write_durably
from secure_fed.identity import SigningKey
from secure_fed.ledger import Ledger

_NONCE = 12


def of_run(name: str, run: str) -> str:
    """Under which name a home keeps something of one run: several may be under way, and a run's name is a message's."""
    return f"{name}-{hashlib.sha256(run.encode()).hexdigest()[:16]}"


class Home:
    """One site's folder. Everything that a site remembers is here, so any process can go on for it."""

    def __init__(self, root: Path) -> None:
        """Open an existing home; raises ConfigError where it is none."""
        self.root = root
        self._alone = False
        self._key: SigningKey | None = None
        self._names_unsynced = False
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

    @property
    def next_key_path(self) -> Path:
        """The key of a rotation under way; it counts only once the ledger goes by it."""
        return self.private / "identity.next.pem"

    def signing_key(self) -> SigningKey:
        """The site's Ed25519 identity: the key that the ledger goes by, also where a crash interrupted a rotation.

        A block of `alone` reads it once, for nobody else can change it there, and forgets it with the block.
        """
        if self._key is not None:
            return self._key
        key = self._read_key()
        if self._alone:
            self._key = key
        return key

    def _read_key(self) -> SigningKey:
        if self.next_key_path.exists():
            try:
                with Ledger.open(self.ledger_path, self.policy().site, SigningKey.load(self.next_key_path)):
                    self.take_next_key()
            except LedgerError as error:  # it goes by the old key, or the process that rotates has it open
                self.log(f"the new key is not in force: {error}")
        return SigningKey.load(self.private / "identity.pem")

    def take_next_key(self) -> None:
        """Put the next key in the place of the identity; what was begun under the old one is void."""
        self._key = None
        self.drop_all("session-")
        self.next_key_path.replace(self.private / "identity.pem")
        sync_folder(self.private)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process or thread uses this home: a stored state serves one step, and one only.

        What is put and dropped in the block survives a power cut when it is left, on whatever way, or after `settle`:
        nothing that depends on it may leave the site before.
        """
        handle = os.open(self.private / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._alone = True
            yield
        finally:
            self._alone, self._key = False, None
            try:
                self.settle()
            finally:
                os.close(handle)

    def settle(self) -> None:
        """Make what was put and dropped so far survive a power cut: the files are synced, now their names are too."""
        if self._names_unsynced:
            sync_folder(self.private)
            self._names_unsynced = False

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, encrypted, replacing what was there in one step.

        A power cut leaves all of it or all of what was there before; which, is settled at once, or in a block of
        `alone` with everything else of the block: a message puts up to six, and a folder need not be synced for each.
        """
        nonce = secrets.token_bytes(_NONCE)
        wrapped = nonce + self._cipher().encrypt(nonce, data, name.encode())
        write_durably(self._path(name), wrapped, overwrite=True, sync_name=not self._alone)
        self._names_unsynced |= self._alone

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

    def drop(self, name: str, *, synced: bool = False) -> None:
        """Forget `name`. The bytes may survive on the medium; the key beside them is the site's to guard.

        With `synced` no power cut brings it back.
        """
        self._path(name).unlink(missing_ok=True)
        if synced and self._alone:
            self._names_unsynced = True
        elif synced:
            sync_folder(self.private)

    def drop_all(self, prefix: str, keep: str = "") -> None:
        """Forget everything whose name begins with `prefix`, but for `keep`."""
        for path in self.private.glob(f"{prefix}*.bin"):
            if path.stem != keep:
                path.unlink(missing_ok=True)

    def put_tensors(self, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep arrays and JSON facts about them under `name`, as `put` does."""
        self.put(name, json.dumps(facts, sort_keys=True).encode() + b"\n" + save_tensors(dict(tensors)))

    def get_tensors(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Facts and arrays of `put_tensors`; None and ConfigError as `get`."""
        stored = self.get(name)
        if stored is None:
            return None
        facts, tensors = stored.split(b"\n", maxsplit=1)
        return json.loads(facts), load_tensors(tensors)

    def forget_run(self, run: str) -> None:
        """Forget all that is kept of one run; what it charged and released stays on ledger and journal."""
        self.drop_all(of_run("*", run))

    def log(self, text: str) -> None:
        """Append a line to the site's own log, which nobody else reads; to stderr where the disk refuses it.

        It never raises: what is logged is often that the disk is full, and a site that was lied to halts after it.
        """
        try:
            with (self.private / "site.log").open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text.rstrip() + "\n")
        except OSError as error:
            print(f"site.log could not be written ({error.strerror}): {text.rstrip()}", file=sys.stderr)  # noqa: T201

    def derived_key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, from the key that never leaves this home; the same as long as the home lives."""
        info = b"secure_fed home/" + purpose.encode()
        secret = (self.private / "storage.key").read_bytes()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)

    def _path(self, name: str) -> Path:
        return self.private / f"{name}.bin"

    def _cipher(self) -> AESGCM:
        return AESGCM((self.private / "storage.key").read_bytes())
