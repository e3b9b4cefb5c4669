"""Telling the host program of each refused call, beside the exception that the call raises."""

from __future__ import annotations

from collections.abc import Callable

from meterkit.errors import DenialError

OnDenied = Callable[[DenialError], None]


class _Unraised:
    """Hands an exception that must not be raised to `sys.unraisablehook`, as only the interpreter can do: what
    a finalizer raises goes there.
    """

    def __init__(self, fault: BaseException) -> None:
        self._fault = fault

    def __del__(self) -> None:
        raise self._fault


def report(fault: BaseException) -> None:
    """Tell of an exception that must not be raised here; `sys.unraisablehook` prints it unless the program says
    otherwise.
    """
    _Unraised(fault)


def tell(hook: OnDenied | None, denial: DenialError) -> None:
    """Call the hook. An exception of its own does not take the denial's place: it goes to `sys.unraisablehook`,
    which prints it unless the program says otherwise. KeyboardInterrupt and SystemExit pass: they are meant for
    the whole program.
    """
    if hook is None:
        return
    try:
        hook(denial)
    except Exception as fault:  # noqa: BLE001 - not swallowed: reported as the interpreter reports such
        report(fault)
