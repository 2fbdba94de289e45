"""The command line: one subcommand a stage, and ``run`` for a recipe."""

import errno
import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported

import transformers
from jsonargparse import ArgumentParser

from chatwright import memory, recipe
from chatwright.errors import ChatwrightError
from chatwright.stages import STAGES
from chatwright.stages.base import execute
from chatwright.terminal import console
from chatwright.training import distributed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's error is one line on standard error and status 1, an interruption status 130."""
    transformers.utils.logging.disable_progress_bar()
    memory.keep()
    parser = _parser()
    options = parser.parse_args(arguments)
    command, chosen = options.subcommand, options[options.subcommand]
    while "subcommand" in chosen:
        command, chosen = f"{command} {chosen.subcommand}", chosen[chosen.subcommand]
    try:
        with distributed.world():
            if command == "run":
                recipe.run(Path(chosen.recipe), chosen.out)
                return 0
            settings = vars(parser.instantiate(options)[command.replace(" ", ".")])
            out = settings.pop("out", Path())
            settings.pop("config", None)
            if not execute(STAGES[command](**settings), out):
                console.print(f"{out}: finished before; nothing to do", soft_wrap=True)
    except ChatwrightError as error:
        print(f"chatwright: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"chatwright: {error.filename or 'disk'}: the disk is full; free some space and run again", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nchatwright: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="chatwright", description="Build your own multimodal ChatGPT, step by step.")
    commands = parser.add_subcommands(dest="subcommand")
    runner = ArgumentParser(description="Run a recipe: its stages in order, each skipped where it is finished.")
    runner.add_argument("recipe", type=str, help="the recipe's YAML file")
    runner.add_argument("--out", type=Path | None, default=None, help="the run's folder instead of the recipe's")
    commands.add_subcommand("run", runner)
    groups = {"": commands}
    for name, stage in STAGES.items():
        group, _, command = name.rpartition(" ")
        if group not in groups:
            title = f"Commands about {group}."
            parent = ArgumentParser(description=title)
            commands.add_subcommand(group, parent, help=title)
            groups[group] = parent.add_subcommands(dest="subcommand")
        one = ArgumentParser(description=(stage.__doc__ or "").strip())
        one.add_argument("--config", action="config", help="settings from a YAML file")
        one.add_class_arguments(stage, None, as_positional=not stage.artifact)
        if stage.artifact:
            one.add_argument(
                "--out", type=Path, default=Path("runs") / name.replace(" ", "-"), help="the artifact's folder"
            )
        groups[group].add_subcommand(command, one, help=(stage.__doc__ or "").strip().split("\n")[0])
    return parser


if __name__ == "__main__":
    sys.exit(main())
