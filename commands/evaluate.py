"""`eval`: evaluations of video models, one group per protocol."""

from longtake.commands.evaluate_bench import bench
from longtake.commands.evaluate_vbench import vbench
from longtake.commands.options import group

evaluate = group("Evaluate video models.")
evaluate.add_typer(bench, name="bench")
evaluate.add_typer(vbench, name="vbench")
