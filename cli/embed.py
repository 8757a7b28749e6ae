#!/usr/bin/env python3
"""Writes a C++ file that holds a file's bytes: embed.py INPUT > OUTPUT.

The bytes become extern "C" arrays `forkd_cli_contract_bytes` and `forkd_cli_contract_size`.
"""
import sys


def main() -> int:
    with open(sys.argv[1], "rb") as source:
        content = source.read()
    out = sys.stdout
    out.write('#include <cstddef>\nextern "C" {\nextern const unsigned char forkd_cli_contract_bytes[];\n')
    out.write("extern const std::size_t forkd_cli_contract_size;\n")
    out.write("const unsigned char forkd_cli_contract_bytes[] = {\n")
    for start in range(0, len(content), 32):
        out.write(",".join(str(byte) for byte in content[start:start + 32]) + ",\n")
    out.write("};\nconst std::size_t forkd_cli_contract_size = sizeof(forkd_cli_contract_bytes);\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
