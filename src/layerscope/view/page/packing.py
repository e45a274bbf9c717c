"""How numbers and texts travel inside a page: deflated, in base64, as JSON that no HTML parser can misread."""

import base64
import json
import re
import zlib

_UNSAFE = re.compile("[<>&\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")
"""What could end a script element or a line of one, and what could turn the page's source around."""


def safe_json(value: object) -> str:
    """Compact JSON that may stand inside a script element, whatever its texts hold.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda unsafe: f"\\u{ord(unsafe[0]):04x}", text)


def packed(content: bytes) -> str:
    """Bytes as base64 of a zlib stream, which browsers decode by `DecompressionStream("deflate")`."""
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")
