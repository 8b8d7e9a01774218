"""`crgan data`: the data sets, and what a folder of published files holds."""

from collections.abc import Sequence
from pathlib import Path

from .. import cli, data
from ..errors import InputError, check_name


def describe(name: str | None = None, /, *, root: Path | None = None) -> None:
    """List the data sets: image shapes and factors of those that are rendered, the files of the others.

    Args:
        name: One data set.
        root: Folder of its published files, which are read and checked.
    """
    if name is not None:
        check_name("data set", name, data.NAMES)
    elif root is not None:
        raise InputError(f"--root is {root}; give the name of a data set before it")
    for each in [name] if name else data.NAMES:
        try:
            found = data.load(each, root)
        except InputError as error:
            if root is not None:
                raise
            print(error)
            continue
        factors = ", ".join(f"{factor} {size}" for factor, size in zip(found.factor_names, found.factor_sizes))
        shape = " x ".join(map(str, found.image_shape))
        print(f"{each}: {found.num_images:,} images {shape}, {root or 'rendered'}; factors: {factors or 'none'}")


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.data", describe, args)


if __name__ == "__main__":
    main()
