"""`grpo`: reward-driven post-training."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import Checkpoint, Device, DryRun, Overrides, Resume, group

grpo = group("Reward-driven post-training (Algorithm 1 of the report).")


@grpo.command("run")
def grpo_run(
    preset: Annotated[
        str, typer.Option(help="Settings to start from: tiny, tiny_analytic, table9, ...")
    ] = "tiny",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML laid over the preset.")
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory. Default: a new one in runs/.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="List every setting of the preset, then stop.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training prompts, one a line, UTF-8.")
    ] = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Align a video model to rewards and measure held-out prompts before and after.

    Example: python cli.py grpo run --output-dir runs/first --set seed=1
    """
    import json

    from longtake.grpo.config import PRESETS
    from longtake.runtime.config import merge_config, settings_list
    from longtake.runtime.errors import ConfigError

    if preset not in PRESETS:
        raise ConfigError("unknown preset", received=preset, expected=" | ".join(PRESETS))
    options = {
        "prompts": prompts,
        "checkpoint": checkpoint,
        "device": None if device == "auto" else device,
    }
    values = [f"{key}={json.dumps(str(v))}" for key, v in options.items() if v is not None]
    # A mistyped setting is answered here, before torch and the models are imported.
    merged = merge_config(PRESETS[preset](), config, [*(overrides or []), *values])
    if settings:
        typer.echo(settings_list(merged))
        return

    from longtake.grpo.run import run_grpo
    from longtake.sandbox.oracles import ORACLES  # held-out only: grpo never imports the sandbox

    run_grpo(merged, output_dir=output_dir, resume=resume, dry_run=dry_run, metrics=ORACLES)
