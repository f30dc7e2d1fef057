"""Write files whole or not at all, lock folders, read JSON with care, and tell files by digests."""

from clipkit.files.folders import replacing_folder, settle
from clipkit.files.locks import lock
from clipkit.files.output import check_output, typed_write_errors
from clipkit.files.read import (
    address_scheme,
    check_file,
    parse_json,
    read_json,
    read_text,
    sha256,
    spell_path,
)
from clipkit.files.write import remove_leftovers, replacing, write_json, write_weights

__all__ = [
    "address_scheme",
    "check_file",
    "check_output",
    "lock",
    "parse_json",
    "read_json",
    "read_text",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "settle",
    "sha256",
    "spell_path",
    "typed_write_errors",
    "write_json",
    "write_weights",
]
