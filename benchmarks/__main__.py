"""What can be measured: ``python -m benchmarks`` lists command, purpose and results files."""

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, first line of the docstring and results files of each, read without importing it."""
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        told = (ast.get_docstring(tree) or "").splitlines()[0]
        yield path.stem, told, next(filter(None, map(_written, tree.body)), ())


def _written(statement: ast.stmt) -> tuple[str, ...]:
    """Files named by ``WRITES = (...)``; none for any other statement."""
    if not isinstance(statement, ast.Assign) or ast.unparse(statement.targets[0]) != "WRITES":
        return ()
    return tuple(f"benchmarks/results/{name}.csv" for name in ast.literal_eval(statement.value))


def main() -> None:
    """Print three lines for each: its command, what it is for, where its rows go."""
    for name, told, files in benchmarks():
        print(f"python -m benchmarks.{name}\n    {told}")
        if files:
            print(f"    rows: {', '.join(files)}")
    print("\nOptions: --help after any of them. What was measured: benchmarks/README.md")


if __name__ == "__main__":
    main()
