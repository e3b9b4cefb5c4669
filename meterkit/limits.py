"""Every limit and default, with its unit last in its name (DESIGN §10).

Relations between limits are checked by `tests/core/test_limits.py`.
"""

# Numbers and text
from __future__ import annotations

INTEGER_MAX = 2**53 - 1  # what every JSON reader agrees on
JSON_DEPTH_MAX = 8
TIME_MAX_S = 253_402_300_799  # 9999-12-31T23:59:59Z
SIGNED_TIME_MAX_S = 7_500_000_000  # in 2207: nanoseconds of it, and windows, still fit their words
NAME_CHARS_MAX = 64
TEXT_CHARS_MAX = 256
KID_CHARS = 43  # an RFC 7638 thumbprint, base64url

# Sizes, judged before anything is decoded
TOKEN_BYTES_MAX = 8 * 1024
RECEIPT_BYTES_MAX = 64 * 1024
REVOCATIONS_BYTES_MAX = 1024 * 1024
EVIDENCE_MANIFEST_BYTES_MAX = 16 * 1024 * 1024
KEYRING_BYTES_MAX = 64 * 1024
ACTIVATION_BYTES_MAX = 16 * 1024
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCH_SENT_BYTES_MAX = 512 * 1024  # what a device puts in one: a request takes at least one such
BATCH_RECORDS_MAX = 10_000
RECORD_BYTES_MAX = 4 * 1024
EXCHANGE_BATCHES_MAX = 16
FILE_BATCHES_MAX = 10_000
EXCHANGE_WIRE_BYTES_MAX = 1024 * 1024
EXCHANGE_BYTES_MAX = 16 * 1024 * 1024
REPLY_BYTES_MAX = 4 * 1024 * 1024
SEALED_KEY_BYTES_MAX = 64 * 1024
FILE_BYTES_MAX = 64 * 1024 * 1024  # one .mkbatch stick file, or one evidence part
EVIDENCE_BYTES_MAX = 256 * 1024 * 1024  # all parts of one evidence file, inflated
EVIDENCE_PARTS_MAX = 100_000
BODY_BYTES_MAX = 1024 * 1024  # a vendor's API request

# Counts inside one signed thing
TOKEN_MODELS_MAX = 64
MODEL_DIGESTS_MAX = 32
FEATURES_MAX = 64
KEYRING_KEYS_MAX = 64
ROOTS_MAX = 16
REPLY_KEYRINGS_MAX = 16
REVOCATIONS_ENTRIES_MAX = 10_000
METERS_MAX = 256  # in one epoch of a ledger

# Tokens
TOKEN_LIFE_S = 30 * 86_400
TOKEN_LIFE_MIN_S = 3_600
TOKEN_LIFE_MAX_S = 400 * 86_400
RENEW_PERCENT = 20  # of the life: when this much is left, a new token is due
GRACE_S = 7 * 86_400
GRACE_MAX_S = 90 * 86_400

# Replacing devices
REPLACEMENTS_PERCENT = 10  # of a license's places, and at least one, may be given to a new device in one period
REPLACEMENT_PERIOD_S = 30 * 86_400  # any such time, not a calendar's month
REPLACEMENT_CODE_LIFE_S = 30 * 86_400

# Keys
KEYRING_LIFE_S = 366 * 86_400
SIGNING_KEY_LIFE_S = 366 * 86_400

# Clock
CLOCK_BACK_MAX_S = 300  # steps back, in all, until a receipt covers them
CLOCK_AGREE_S = 300  # a wall clock this near to the boot clock may raise the floor
CLOCK_JUMP_OFF_MAX_S = 86_400  # a jump forward while the device was off
WINDOW_S = 900

# Counting
LEASE_UNITS_MAX = 32_768
LEASE_SHARE = 16  # a lease takes at most this fraction of what is left
LEASE_COMMITS = 100  # a lease lasts at least so many times its own commit
HELD_COMMITS = 200  # what a process holds ahead of need lasts at least so many
HELD_LEASES_MAX = 16  # for one process and meter
LEASE_TARGET_NS = 1_000_000_000
CELL_FLUSH_NS = 1_000_000_000
CELL_COUNT_MAX = 2**40 - 1
CALL_UNITS_MAX = 2**32 - 1  # items of one run()
CELL_WINDOW_MAX = 2**24 - 1
CELL_SLOT_BYTES = 64
CELL_SLOTS = 2_048  # in the one cell file of a process: its threads × sessions × ways to run that they use
CELL_FILES_MAX = 16  # above it, those of processes that are gone are folded by the next one's first call
UNITS_PER_SECOND_MAX = 1_000_000  # above it a record is quarantined

# The ledger on the device
RECORD_KEPT_S = 35 * 86_400
PRUNED_RECORDS_MAX = 1_000  # in one transaction
BUSY_TIMEOUT_MS = 10_000

# Sync
SYNC_DEFAULT_S = 86_400
SYNC_JITTER_PERCENT = 10
SYNC_SPREAD_S = 300  # a fleet that comes back overdue, as after a power cut, comes over so long
SYNC_RETRY_S = 60  # after a failed one; twice that after the next, and so on
SYNC_RETRY_MAX_S = 3_600
HTTP_TIMEOUT_S = 30  # of silence
HTTP_EXCHANGE_MAX_S = 600  # of one exchange: the largest request crosses a line of 14 kbit/s in it

# Money
AMOUNT_DECIMALS_MAX = 12
AMOUNT_DIGITS_MAX = 30
TIERS_MAX = 256
CHARGES_MAX = 64
