"""`eval`: evaluations of video models, one group per protocol."""

from longtake.commands.evaluate_bench import bench
from longtake.commands.options import group

evaluate = group("Evaluate video models.")
evaluate.add_typer(bench, name="bench")
