"""Write clipkit/assets/merges.txt.gz, the byte-pair merge table of CLIP, from its published form.

    python scripts/make_merges.py

The published file (OpenAI CLIP, MIT licence) travels inside the open_clip_torch distribution, which is read as data and
never imported. It holds a header and 262,144 merges; CLIP's vocabulary of 49,408 uses the first 48,894, beside 256
bytes, the same 256 ending a word, and two special tokens. The output carries no file name and no time stamp.
"""

import gzip
import hashlib
from importlib.metadata import distribution
from pathlib import Path

SOURCE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
USED = 49408 - 256 - 256 - 2
TARGET = Path(__file__).parent.parent / "clipkit" / "assets" / "merges.txt.gz"
TEXT_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"


def main() -> None:
    published = gzip.decompress(
        Path(str(distribution("open_clip_torch").locate_file(SOURCE))).read_bytes()
    )
    lines = published.decode("utf-8").split("\n")
    text = "\n".join(lines[1 : 1 + USED]).encode("utf-8")  # line 0 is the header
    if hashlib.sha256(text).hexdigest() != TEXT_SHA256:
        raise SystemExit(f"{SOURCE} is not the merge table that clipkit was built with")
    TARGET.write_bytes(gzip.compress(text, compresslevel=9, mtime=0))
    print(f"{TARGET.name}: {USED} merges, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
