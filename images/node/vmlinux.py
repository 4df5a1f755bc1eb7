#!/usr/bin/env python3
"""vmlinux.py VMLINUZ OUT: the ELF image inside an xz-compressed Linux bzImage."""
import lzma
import sys

MAGIC = b"\xfd7zXZ\x00"


def main(source, target):
    data = open(source, "rb").read()
    start = data.find(MAGIC)
    while start >= 0:
        try:
            image = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data[start:])
        except lzma.LZMAError:
            image = b""
        if image.startswith(b"\x7fELF"):
            with open(target, "wb") as out:
                out.write(image)
            return
        start = data.find(MAGIC, start + 1)
    sys.exit(f"{source} holds no kernel compressed by xz")


main(*sys.argv[1:])
