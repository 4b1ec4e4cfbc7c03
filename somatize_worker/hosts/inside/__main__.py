"""Start of a filter host: ``python -u <this file> <wire's file descriptor> [helper <note's file descriptor>]``.

It is run by its path, with the Python of whatever environment the filters need. This very copy of the package is
what gets imported there, even where another version of it is installed.
"""

import importlib.machinery
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = "somatize_worker"


class _ThisCopy:
    """A finder that knows one package: the copy in which this file lies. Its submodules follow from there."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _PACKAGE:
            return None
        parent = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))
        return importlib.machinery.PathFinder.find_spec(name, [parent])


if __name__ == "__main__":
    sys.meta_path.insert(0, _ThisCopy)
    if sys.path and sys.path[0] == _HERE:
        del sys.path[0]  # or `import filters` in user code would find a file of this folder
    from somatize_worker.hosts.inside.host import main

    main(sys.argv[1:])
