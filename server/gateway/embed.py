#!/usr/bin/env python3
"""Writes a C++ file that holds a file's bytes: embed.py NAME INPUT > OUTPUT.

The bytes become the extern "C" constants NAME_bytes and NAME_size.
"""
import sys


def main() -> int:
    name = sys.argv[1]
    with open(sys.argv[2], "rb") as source:
        content = source.read()
    out = sys.stdout
    out.write(f'#include <cstddef>\nextern "C" {{\nextern const unsigned char {name}_bytes[];\nextern const std::size_t {name}_size;\n')
    out.write(f"const unsigned char {name}_bytes[] = {{\n")
    for start in range(0, len(content), 32):
        out.write(",".join(str(byte) for byte in content[start:start + 32]) + ",\n")
    out.write(f"}};\nconst std::size_t {name}_size = sizeof({name}_bytes);\n}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
