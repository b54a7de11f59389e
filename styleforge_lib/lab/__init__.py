"""What the notebooks use: measuring, checking, looking.

The names are imported here at once, not when asked for, because a module and its function often share a name
(``compare``, ``profile``), and ``lab.compare`` must mean the function.
"""

from styleforge_lib.lab.bench import Candidate, bench, errors, graphed, recorded_table
from styleforge_lib.lab.budget import Budget
from styleforge_lib.lab.check import Verdict, check
from styleforge_lib.lab.compare import compare
from styleforge_lib.lab.figures import (
    draw_curves,
    draw_error_and_time,
    draw_idle,
    draw_network,
    draw_pictures,
    draw_profile,
    draw_shares,
    draw_sweep,
    draw_versions,
)
from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.peers import bench_network, bench_peers, recorded_peers, transformer_net_now
from styleforge_lib.lab.photos import photo, photo_tensor
from styleforge_lib.lab.profile import by_kind, by_layer, merge_residual, profile, recorded
from styleforge_lib.lab.reduction_stepper import reduction_stepper
from styleforge_lib.lab.roofline import Point, roofline
from styleforge_lib.lab.studio import gallery, studio
from styleforge_lib.lab.thread_map import thread_map
from styleforge_lib.lab.toy_gpu import ToyGPU
from styleforge_lib.lab.variance_slider import variance_slider
from styleforge_lib.lab.words import compared, say, tabulate, verdict
from styleforge_lib.lab.xray import XRay, xray

__all__ = [
    "Budget",
    "Candidate",
    "Machine",
    "Point",
    "ToyGPU",
    "Verdict",
    "XRay",
    "bench",
    "bench_network",
    "bench_peers",
    "by_kind",
    "by_layer",
    "check",
    "compare",
    "compared",
    "draw_curves",
    "draw_error_and_time",
    "draw_idle",
    "draw_network",
    "draw_pictures",
    "draw_profile",
    "draw_shares",
    "draw_sweep",
    "draw_versions",
    "errors",
    "gallery",
    "graphed",
    "merge_residual",
    "photo",
    "photo_tensor",
    "profile",
    "recorded",
    "recorded_peers",
    "recorded_table",
    "reduction_stepper",
    "roofline",
    "say",
    "studio",
    "tabulate",
    "thread_map",
    "transformer_net_now",
    "variance_slider",
    "verdict",
    "xray",
]
