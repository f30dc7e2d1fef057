"""Stand for a terminal, where people read what is printed."""

import io


class Terminal(io.TextIOWrapper):
    """Stand for a terminal of some encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True
