"""usage: crgan COMMAND ...      or: python -m crgan COMMAND ...

  train     train a model: crgan train quick
  select    rank a pool of models without labels: crgan select runs/* --out choice
  evaluate  score models by disentanglement metrics: crgan evaluate runs/quick-seed0
  sweep     train a pool of models: crgan sweep quick --seeds 0:10 --out runs/pool
  report    write one HTML page of a run, a selection or a sweep: crgan report runs/quick-seed0
  traverse  draw what each code changes: crgan traverse runs/quick-seed0 --out codes.gif
  export    write a model as torch.export programs: crgan export runs/quick-seed0 my-model
  data      list the data sets: crgan data

`crgan COMMAND --help` lists the flags of a command; `crgan --version` prints the version.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from . import cli
from .errors import InputError, check_name

COMMANDS = ("train", "select", "evaluate", "sweep", "report", "traverse", "export", "data")


def traverse(
    run: str,
    /,
    out: Path,
    codes: tuple[int, ...] = (),
    range: tuple[float, float] | None = None,
    steps: int = 10,
    base: int | None = None,
) -> None:
    """Draw a latent traversal: each code moves while the others, and the noise, stand still.

    Args:
        run: Run folder, exported folder or module:function, as for crgan select.
        out: Picture: .png, with a row per code; or .gif, in which the codes move back and forth.
        codes: Numbers of the codes, from 1; default all.
        range: First and last value; default -1 1, or -2 2 where codes are Gaussian.
        steps: Number of values of each code.
        base: Seed of the image whose codes the others keep; default: all codes 0.
    """
    import torch

    from . import pictures
    from .loading import open_models

    cli.at_least(1, steps=steps)
    out = Path(out).expanduser()
    if out.suffix not in (".png", ".gif"):
        raise InputError(f"--out is {out}; expected a name that ends in .png or .gif")
    model = open_models(run)[0]
    numbers = torch.arange(1, model.num_codes + 1).tolist()
    if wrong := set(codes) - set(numbers):
        raise InputError(f"--codes holds {wrong.pop()}; expected numbers from 1 to {model.num_codes}")
    codes, seed, reach = codes or tuple(numbers), base or 0, pictures.code_reach(model)
    low, high = range or (-reach, reach)
    centre = torch.zeros(model.num_codes) if base is None else model.encode(model.sample(1, seed))[0]
    values = pictures.traversal_codes(centre, steps, low, high)[[number - 1 for number in codes]]
    # One image at a time, so that each call draws the same noise from the seed.
    images = torch.cat([model.generate(code[None], seed).detach() for code in values.flatten(0, 1)])
    images, labels = images.unflatten(0, (-1, steps)), [f"c{number}" for number in codes]
    frames = images.split(1 if out.suffix == ".gif" else steps, 1)
    pictures.save(out, *(pictures.image_grid(frame, labels) for frame in (*frames, *frames[-2:0:-1])))
    print(f"wrote {out}")


def export(run: str, folder: Path, /) -> None:
    """Write a model as torch.export programs, with a model card.

    Args:
        run: Run folder of crgan train, or module:function.
        folder: Where to write generate.pt2, encode.pt2 and README.md.
    """
    import_module("crgan.exporting").export(run, folder)
    print(f"wrote {folder}/: generate.pt2, encode.pt2, README.md")


def data(name: str | None = None, /, *, root: str | None = None) -> None:
    """List the data sets: image shapes and factors of those that are rendered, the files of the others.

    Args:
        name: One data set.
        root: Folder of its published files, which are read and checked.
    """
    from .data import NAMES, load

    for each in [name] if name else NAMES:
        try:
            found = load(each, root)
        except InputError as error:
            if name:
                raise
            print(error)
            continue
        factors = ", ".join(f"{factor} {size}" for factor, size in zip(found.factor_names, found.factor_sizes))
        shape = " x ".join(map(str, found.image_shape))
        print(f"{each}: {found.num_images:,} images {shape}, {found.source}; factors: {factors or 'none'}")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the other arguments."""
    command, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    with cli.command_process():
        if command in ("-h", "--help"):
            return print(__doc__, end="")
        if command == "--version":
            return print("crgan", import_module("crgan").__version__)
        check_name("command", command, COMMANDS)
    if command in ("traverse", "export", "data"):
        cli.run(f"crgan.{command}", globals()[command], rest)
    else:
        import_module(f"crgan.{command}").main(rest)


if __name__ == "__main__":
    main()
