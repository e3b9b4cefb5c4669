"""What goes between a simulated device and its vendor: at once, late, twice, in any order, or never."""

from machine_world import Process, World
from vendor import code as activation_code

from meterkit import exchange, limits
from meterkit.clocks import NS
from meterkit.errors import LedgerError
from meterkit.exchange import Reply

_KEPT_MAX = 6  # batches and replies on their way


class Mail(World):
    """Batches, replies, and what is refused of them."""

    def hand_over(self, process: Process) -> list[str] | None:
        made: list[str] = []
        if self.act(process, lambda: made.extend(process.device.make_batches())) is not None:
            return None
        key = process.device.keys.sign.verify_key
        opened = [exchange.open_batch(text, lambda _: key)[1] for text in made]
        self.promises.append((opened[-1].seq_to, max(batch.through for batch in opened)))
        self.batches = [*self.batches, made][-_KEPT_MAX:]
        return made

    def answer(self, batches: list[str], models: list | None, **changes) -> bytes:
        """What the vendor answers to batches, kept as a reply that can be taken at any time."""
        self.vendor.now = self.time.now_s
        try:
            return self.keep(self.vendor.accept(batches, models, **changes))
        except LedgerError:  # two branches: this vendor follows one
            assert "restored" in self.happened
            return self.keep(Reply().to_bytes())

    def activate(self, process: Process, models: list, **changes) -> bytes | None:
        self.vendor.now = self.time.now_s
        made: list[str] = []
        code = activation_code()
        if self.act(process, lambda: made.append(process.device.request_activation(code))) is not None:
            return None
        return self.keep(self.vendor.answer_activation(made[0], models, **changes))

    def keep(self, reply: bytes) -> bytes:
        token = exchange.read_reply(reply).token
        if token is not None:
            self._note_token(token)
        self.replies = [*self.replies, reply][-_KEPT_MAX:]
        return reply

    def take(self, process: Process, reply: bytes) -> None:
        token = exchange.read_reply(reply).token
        self.floor_may_fall = token is not None and self.read_token(token).time_floor is not None
        self.view.read()
        self.view.remember()
        outcomes: list = []
        self.act(process, lambda: outcomes.append(process.device.take_reply(reply)))
        if self.floor_may_fall:  # a clock that the server sets back takes with it what was promised by that clock
            self.view.read()
            window_s = self.view.floor_ns // NS // limits.WINDOW_S * limits.WINDOW_S
            self.promises = [(seq, min(through, window_s)) for seq, through in self.promises]
        self.note_known(process)
        refused = {part.code for outcome in outcomes for part in outcome.refused}
        allowed = {"ledger_unwritable"} if self.struck else set()
        if "revoked" in self.happened:
            allowed.add("token_revoked")
        if "tampered" in self.happened:
            allowed |= {"receipt_foreign", "ledger_damaged"}
        assert refused <= allowed, refused
