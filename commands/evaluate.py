"""`eval`: evaluations of video models, one group per protocol."""

from longtake.commands.evaluate_bench import bench
from longtake.commands.evaluate_gsb import gsb
from longtake.commands.evaluate_judge import judge
from longtake.commands.evaluate_mos import mos
from longtake.commands.evaluate_ratings import power_command, rescore_command
from longtake.commands.evaluate_vbench import vbench
from longtake.commands.options import group

evaluate = group("Evaluate video models.")
evaluate.add_typer(mos, name="mos")
evaluate.add_typer(gsb, name="gsb")
evaluate.add_typer(judge, name="judge")
evaluate.add_typer(vbench, name="vbench")
evaluate.add_typer(bench, name="bench")
evaluate.command("rescore")(rescore_command)
evaluate.command("power")(power_command)
