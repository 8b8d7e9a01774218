"""`crgan COMMAND ...`, or `python -m crgan COMMAND ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from .cli import command_process
from .errors import check_name

COMMANDS = {
    "train": "train a model: crgan train quick",
    "select": "rank a pool of models without labels: crgan select runs/* --out choice",
    "evaluate": "score models by the metrics of disentanglement: crgan evaluate runs/quick-seed0",
    "sweep": "train a pool of models: crgan sweep quick --seeds 0:10 --out runs/pool",
    "report": "write one HTML page of a run or a selection: crgan report runs/quick-seed0",
    "traverse": "draw what each code changes: crgan traverse runs/quick-seed0 --out codes.gif",
    "export": "write a model as torch.export programs: crgan export runs/quick-seed0 my-model",
    "data": "list the data sets: crgan data",
}
MODULES = {"export": "exporting", "data": "data.__main__"}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the arguments begin with on the arguments that follow."""
    args = sys.argv[1:] if args is None else list(args)
    with command_process():
        if not args or args[0] in ("-h", "--help"):
            print("usage: crgan COMMAND ...\n\n" + "\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items()))
            print("\n`crgan COMMAND --help` lists the flags of a command; `crgan --version` prints the version.")
            return
        if args[0] == "--version":
            from crgan import __version__

            print(f"crgan {__version__}")
            return
        check_name("command", args[0], COMMANDS)
    import_module(f"crgan.{MODULES.get(args[0], args[0])}").main(args[1:])


if __name__ == "__main__":
    main()
