"""`crgan traverse RUN --out codes.gif`: what each code changes in a model's images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from . import cli
from .errors import InputError
from .files import write_atomically
from .loading import open_models
from .pictures import image_grid, traversal_codes


@torch.no_grad()
def traverse(
    run: str,
    /,
    out: Path,
    codes: tuple[int, ...] = (),
    range: tuple[float, float] | None = None,
    steps: int = 10,
    base: int | None = None,
    device: str = "auto",
) -> None:
    """Draw a latent traversal: each code moves while the others, and the noise, stand still.

    Args:
        run: Run folder, exported folder or module:function, as for crgan.select.
        out: Picture: .png, with a row per code; or .gif, in which the codes move to and fro.
        codes: Numbers of the codes, from 1; default all.
        range: First and last value; default -1 1, or -2 2 where codes are Gaussian.
        steps: Values of each code.
        base: Seed of the image whose codes the others keep; default: codes 0.
        device: auto, cpu, cuda or cuda:<number>.
    """
    out = Path(out).expanduser()
    if out.suffix not in (".png", ".gif"):
        raise InputError(f"--out is {out}; expected a name that ends in .png or .gif")
    cli.at_least(2, steps=steps)
    models = open_models([run], cli.device(device))
    if len(models) > 1:
        raise InputError(f"{run} holds {len(models)} models; give one")
    model = models[0]
    shown = [number - 1 for number in codes or torch.arange(1, model.num_codes + 1).tolist()]
    if wrong := [number for number in codes if not 1 <= number <= model.num_codes]:
        raise InputError(f"--codes holds {wrong[0]}; expected numbers from 1 to {model.num_codes}")
    reach = 1.0 if model.prior == "uniform" else 2.0
    low, high = range or (-reach, reach)
    seed = base or 0  # also of the noise
    centre = torch.zeros(model.num_codes) if base is None else model.encode(model.sample(1, seed))[0].cpu()
    values = traversal_codes(centre, steps, low, high)[shown]
    # One image at a time: all of them are then drawn with the same noise.
    images = torch.cat([model.generate(code[None], seed).float().cpu() for code in values.flatten(0, 1)])
    images, labels = images.unflatten(0, (len(shown), steps)), [f"c{code + 1}" for code in shown]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        picture = image_grid(images, labels)
        write_atomically(out, lambda path: picture.save(path))
    else:
        there = [image_grid(images[:, step : step + 1], labels) for step in torch.arange(steps).tolist()]
        first, *rest = there + there[-2:0:-1]
        write_atomically(out, lambda path: first.save(path, save_all=True, append_images=rest, duration=100, loop=0))
    print(f"wrote {out}")


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.traverse", traverse, args)


if __name__ == "__main__":
    main()
