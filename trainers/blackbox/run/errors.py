"""Errors that a user can mend. Their text is one sentence or a few: what was wrong, what was expected, what to do."""

from difflib import get_close_matches


class BlackBoxError(ValueError):
    """Base of them all: `train.py` prints the text and exits with status 1, without a traceback."""


class BudgetSpent(BlackBoxError):
    """The next request does not fit into the query budget. Raised before the call is made; it ends training, it is not a failure."""


def nearest(name, valid):
    """The valid names, the nearest ones first, as a phrase for an error."""
    lowered = {v.lower(): v for v in valid}
    close = [lowered[c] for c in get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Valid names: {', '.join(sorted(valid))}."


def one_of(what, name, valid):
    """Raise a BlackBoxError unless `name` is among the valid names."""
    if name not in valid:
        raise BlackBoxError(f"Unknown {what} '{name}': {nearest(name, valid)}")
