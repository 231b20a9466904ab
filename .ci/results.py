"""Read a JUnit file of pytest: `skipped FILE` prints the tests that were skipped, to be run by `pytest @LIST`;
`counts FILE` how many ran and how many were skipped."""

import sys
import xml.etree.ElementTree as xml


def main(what: str, path: str) -> None:
    """Print one or the other."""
    cases = list(xml.parse(path).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    if what == "counts":
        print(f"{len(cases) - len(skipped)} tests ran, {len(skipped)} were skipped")
        return
    for case in skipped:  # a whole file that was skipped has no class name
        module, name = case.get("classname"), case.get("name")
        print(f"{module.replace('.', '/')}.py::{name}" if module else f"{name.replace('.', '/')}.py")


if __name__ == "__main__":
    main(*sys.argv[1:])
