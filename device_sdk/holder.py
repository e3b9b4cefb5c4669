"""What a device holds and trusts now: keyring, revocations, token, receipt; verified once, when they change."""

from __future__ import annotations

from device_sdk.vault import DeviceKeys, Vault
from meterkit import keyrings, revocations, tokens
from meterkit.canonical import to_bytes
from meterkit.envelopes import Addressee
from meterkit.errors import DenialError, MeterkitError, TrustError
from meterkit.keys import Keyring, Trust
from meterkit.positions import Position
from meterkit.receipts import Receipt, open_receipt
from meterkit.revocations import Revocations
from meterkit.tokens import Genuine, Token


class Holder:
    """Reads the vault, verifies what it finds, and takes new documents: verify, then persist."""

    def __init__(self, vault: Vault, *, trust: Trust, product: str, keys: DeviceKeys) -> None:
        self.vault = vault
        self.trust = trust
        self.addressee = Addressee(issuer=trust.issuer, product=product, device=keys.device)
        self.keyring: Keyring | None = None
        self.revocations = Revocations()
        self.genuine: Genuine | None = None
        self.fault: MeterkitError | None = None
        self._stamp: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> bool:
        """Read the vault again if another process changed it; tells whether anything did change."""
        stamp = self.vault.stamp()
        if stamp == self._stamp:
            return False
        self.fault = None
        self.keyring = self._read_keyring(self.vault.keyrings())
        self.revocations = self._read_revocations()
        self.genuine = self._read_token()
        self._stamp = stamp  # at the end: what could not be read is read again
        return True

    def _read_keyring(self, documents: list[list[str]]) -> Keyring | None:
        """Follow the stored documents from the trusted roots on; one that does not hold is as none."""
        held: Keyring | None = None
        for document in documents:
            try:
                held = keyrings.follow(document, trust=self.trust, held=held)
            except MeterkitError as fault:
                self.fault = fault
        return held

    def _read_revocations(self) -> Revocations:
        text = self._text("revocations.jws")
        if text is None or self.keyring is None:
            return Revocations()
        try:
            return revocations.open_revocations(
                text, issuer=self.trust.issuer, keyring=self.keyring, held=Revocations()
            )
        except MeterkitError as fault:
            self.fault = fault
            return Revocations()

    def _read_token(self) -> Genuine | None:
        text = self._text("token.jws")
        if text is None:
            return None
        if self.keyring is None:
            self.fault = self.fault or TrustError("key_unknown", "no keyring")
            return None
        try:
            return tokens.open_genuine(
                text,
                keyring=self.keyring,
                addressee=self.addressee,
                revocations=self.revocations,
                serial_min=0,
            )
        except MeterkitError as fault:
            self.fault = fault
            return None

    def _text(self, name: str) -> str | None:
        data = self.vault.read(name)
        return None if data is None else data.decode("ascii", "replace").strip()

    @property
    def token(self) -> Token | None:
        """The token in force, or None. Raises the fault for which a stored one is not genuine."""
        if self.genuine is None:
            if self.fault is not None:
                raise self.fault
            return None
        return self.genuine.token

    def current_token(self) -> Token:
        """The token in force at this edge: steps 6 and 7 are asked again, with what was installed since.

        Raises:
            DenialError: `not_activated`.
            InputError, TrustError: the stored token does not hold, or does not any more.
        """
        self.refresh()
        token = self.token
        if token is None or self.genuine is None or self.keyring is None:
            raise DenialError("not_activated")
        return token

    def receipt_text(self) -> str | None:
        """The newest receipt held, as it was signed."""
        return self._text("receipt.jws")

    def receipt(self) -> Receipt | None:
        """The newest receipt held, verified; None where there is none or it does not hold any more."""
        return self.try_receipt(self.receipt_text())

    def try_receipt(self, text: str | None) -> Receipt | None:
        """A receipt that was stored, verified again; None where it does not hold any more."""
        if text is None or self.keyring is None:
            return None
        try:
            return open_receipt(text, keyring=self.keyring, addressee=self.addressee)
        except MeterkitError:
            return None

    def signed_positions(self) -> list[Position]:
        """Positions that the server has signed, and which the ledger must therefore contain."""
        receipt = self.receipt()
        found = [receipt.position] if receipt else []
        return [*found, self.genuine.token.anchor] if self.genuine else found

    def signed_s(self) -> int:
        """The newest time that is known to be signed: a new ledger's clock starts no earlier."""
        receipt = self.receipt()
        return max(receipt.iat if receipt else 0, self.genuine.token.iat if self.genuine else 0)

    def take_keyring(self, document: list[str]) -> None:
        """Verify a keyring document against what is held, then store it."""
        held = self.keyring
        offered = keyrings.follow(document, trust=self.trust, held=held)
        if held is not None and offered.version == held.version:
            return
        kept = self.vault.keyrings() if held is not None else []
        # The document before is dropped, unless the way from the trusted roots to this one leads through it.
        shorter = [*kept[:-1], document]
        chosen = shorter if self._read_keyring(shorter) == offered else [*kept, document]
        self.vault.replace("keyring.json", to_bytes(chosen))
        self.refresh()

    def take_revocations(self, text: str) -> None:
        """Verify a revocation list against the one held, then store it."""
        keyring = self._need_keyring()
        offered = revocations.open_revocations(
            text, issuer=self.trust.issuer, keyring=keyring, held=self.revocations
        )
        if offered.version > self.revocations.version:
            self.vault.replace("revocations.jws", text.encode("ascii"))
            self.refresh()

    def open_token(self, text: str, *, serial_min: int) -> Genuine:
        """Ask steps 1 to 7 of a token that was handed over. It is stored by `keep_token`."""
        return tokens.open_genuine(
            text,
            keyring=self._need_keyring(),
            addressee=self.addressee,
            revocations=self.revocations,
            serial_min=serial_min,
        )

    def keep_token(self, genuine: Genuine) -> None:
        """Store a token that `open_token` found genuine."""
        self.vault.replace("token.jws", genuine.text.encode("ascii"))
        self.refresh()

    def open_receipt(self, text: str) -> Receipt:
        """Verify a receipt that was handed over. It is stored by `keep_receipt`."""
        return open_receipt(text, keyring=self._need_keyring(), addressee=self.addressee)

    def keep_receipt(self, text: str) -> None:
        """Store a receipt that was verified and found to cover this ledger."""
        self.vault.replace("receipt.jws", text.encode("ascii"))

    def _need_keyring(self) -> Keyring:
        if self.keyring is None:
            raise TrustError("key_unknown", "no keyring held yet")
        return self.keyring
