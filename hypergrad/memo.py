"""What an object keeps for later calls and its copies do without."""

from __future__ import annotations

from typing import Any, final


@final
class Memo(dict[Any, Any]):
    """A dict that copies and pickles empty, for what can be made again, such as compiled code.

    >>> import copy
    >>> copy.deepcopy(Memo(code=print))
    {}
    """

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        """Return what makes an empty one."""
        return Memo, ()
