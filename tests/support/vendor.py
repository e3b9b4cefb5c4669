"""A vendor's side of the exchange, with real keys and the product's own core: for tests of the device alone."""

import secrets
from dataclasses import dataclass, field

from meterkit import envelopes, exchange, ids, limits, signing
from meterkit.activation import open_activation, proof
from meterkit.exchange import Batch, Reply
from meterkit.keys import SigningKey, Trust, VerifyKey
from meterkit.ledger import Chain, verify_chain
from meterkit.licenses import Axis, ModelTerms, Policy
from meterkit.positions import Position
from meterkit.receipts import Receipt
from meterkit.revocations import Revocations
from meterkit.tokens import Token

ISSUER = "vendor.example"
PRODUCT = "camera"


def new_id(prefix: str) -> str:
    return ids.make(prefix, secrets.token_bytes(16))


def call_model(name: str, digest: str, limit: int | None = None) -> ModelTerms:
    return ModelTerms(name=name, unit="call", axis=None, limit=limit, sha256=(digest,))


def item_model(name: str, digest: str, input_name: str, limit: int | None = None) -> ModelTerms:
    return ModelTerms(name=name, unit="item", axis=Axis(input=input_name, dim=0), limit=limit, sha256=(digest,))


@dataclass
class Vendor:
    """Signs what a server signs. `now` is told, and may be moved."""

    now: int
    root: SigningKey = field(default_factory=lambda: SigningKey(secrets.token_bytes(32)))
    online: SigningKey = field(default_factory=lambda: SigningKey(secrets.token_bytes(32)))
    license_id: str = field(default_factory=lambda: new_id("lic"))
    chains: dict[str, Chain] = field(default_factory=dict)
    keys: dict[str, VerifyKey] = field(default_factory=dict)
    serial: int = 0
    since: int = 0

    def __post_init__(self) -> None:
        self.since = self.now

    records: dict[tuple[str, int], bytes] = field(default_factory=dict)

    @property
    def trust(self) -> Trust:
        return Trust(issuer=ISSUER, roots=(self.root.verify_key.text,))

    def keyring(self, version: int = 1, **changes) -> list[str]:
        key = {
            "kid": self.online.kid,
            "key": self.online.verify_key.text,
            "purposes": ["token", "receipt", "revocations", "invoice"],
            "not_before": 0,
            "not_after": limits.TIME_MAX_S,
            "distrusted_after": None,
            **changes,
        }
        claims = {
            "v": 1,
            "iss": ISSUER,
            "iat": self.since,
            "version": version,
            "expires": limits.TIME_MAX_S,
            "roots": {"threshold": 1, "keys": [self.root.verify_key.text]},
            "keys": [key],
        }
        return [signing.sign(envelopes.KEYRING_DOCUMENT, claims, self.root)]

    def token(self, device: str, anchor: Position, models: list[ModelTerms], **changes) -> str:
        life_s = changes.pop("life_s", limits.TOKEN_LIFE_S)
        values = {
            "issuer": ISSUER,
            "product": PRODUCT,
            "device": device,
            "jti": new_id("tok"),
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + life_s,
            "serial": changes.get("serial") or self._next_serial(),
            "license_id": self.license_id,
            "license_ends": None,
            "grace_s": limits.GRACE_S,
            "anchor": anchor,
            "time_floor": None,
            "models": tuple(models),
            "policy": Policy(),
            **changes,
        }
        return signing.sign(envelopes.TOKEN, Token(**values).to_claims(), self.online)

    def _next_serial(self) -> int:
        self.serial = max(self.serial, self.now) + 1
        return self.serial

    def revocations(self, version: int, **lists) -> str:
        listed = {name: frozenset(values) for name, values in lists.items()}
        revoked = Revocations(issuer=ISSUER, iat=self.now, version=version, **listed)
        return signing.sign(envelopes.REVOCATIONS, revoked.to_claims(), self.online)

    def answer_activation(self, request: str, models: list[ModelTerms], **changes) -> bytes:
        opened = open_activation(request)
        self.keys[opened.sign_key.kid] = opened.sign_key
        token = self.token(opened.device, opened.position, models, **changes)
        return Reply(keyrings=(tuple(self.keyring()),), token=token).to_bytes()

    def accept(self, batches: list[str], models: list[ModelTerms] | None = None, **changes) -> bytes:
        """Follow the batches from what was accepted, as a server does, and answer with receipts and a token."""
        receipts = []
        position = device = None
        for text in batches:
            kid, batch = exchange.open_batch(text, lambda kid: self.keys[kid])
            device = f"dev_{kid}"
            position = self._follow(device, batch)
            receipts.append(self._receipt(device, batch.epoch))
        token = self.token(device, position, models, **changes) if models else None
        return Reply(receipts=tuple(receipts[-1:]), token=token).to_bytes()

    def _follow(self, device: str, batch: Batch) -> Position:
        start = Position(epoch=batch.epoch)
        chain = self.chains.get(batch.epoch, Chain(device=device, position=start))
        skip = chain.position.seq - (batch.seq_from - 1)
        if skip < 0:  # a hole in what was sent: the receipt says where to go on from
            return chain.position
        chain, entries = verify_chain(chain, batch.bodies[skip:])
        for entry in entries:
            self.records[batch.epoch, entry.seq] = entry.body
        self.chains[batch.epoch] = chain
        return chain.position

    def _receipt(self, device: str, epoch: str) -> str:
        chain = self.chains.get(epoch, Chain(device=device, position=Position(epoch=epoch)))
        receipt = Receipt(
            issuer=ISSUER,
            product=PRODUCT,
            device=device,
            iat=self.now,
            position=chain.position,
            totals=chain.totals,
        )
        return signing.sign(envelopes.RECEIPT, receipt.to_claims(), self.online)

    def units(self, model: str) -> int:
        """Units of a model accepted in all epochs."""
        return sum(
            total.units
            for chain in self.chains.values()
            for meter, total in chain.totals.items()
            if meter[0] == model
        )


def code() -> str:
    return f"{new_id('code')}.{new_id('x').removeprefix('x_')}"


__all__ = ["ISSUER", "PRODUCT", "Vendor", "call_model", "code", "item_model", "new_id", "proof"]
