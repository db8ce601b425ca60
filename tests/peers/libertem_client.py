"""LiberTEM's client of a Merlin: takes one acquisition and saves the sums over all frames, and of every frame.

Runs in LiberTEM's own environment: libertem_client.py COMMAND_PORT DATA_PORT N_ROWS N_COLS OUTPUT.npy
"""

import sys
import warnings

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
from libertem.udf.sum import SumUDF  # noqa: E402
from libertem.udf.sumsigudf import SumSigUDF  # noqa: E402
from libertem_live.api import Hooks, LiveContext  # noqa: E402
from libertem_live.hooks import ReadyForDataEnv  # noqa: E402


class Start(Hooks):
    """Starts the acquisition by software, as soon as the client listens."""

    def __init__(self, n_frames: int) -> None:
        self.n_frames = n_frames

    def on_ready_for_data(self, env: ReadyForDataEnv) -> None:
        """Arm and fire."""
        with env.aq._conn.control() as control:
            for name, value in {
                "NUMFRAMESTOACQUIRE": self.n_frames,
                "NUMFRAMESPERTRIGGER": self.n_frames,
                "ACQUISITIONTIME": "1.0",
                "TRIGGERSTART": 5,
            }.items():
                control.set(name, value)
            control.cmd("STARTACQUISITION")
            control.cmd("SOFTTRIGGER")


def main() -> None:
    """Take one acquisition."""
    command_port, data_port, n_rows, n_cols = map(int, sys.argv[1:5])
    with LiveContext.make_with("inline") as ctx:
        connection = ctx.make_connection("merlin").open(api_port=command_port, data_port=data_port)
        with connection:
            acquisition = ctx.make_acquisition(
                conn=connection, nav_shape=(n_rows, n_cols), hooks=Start(n_rows * n_cols), frames_per_partition=16
            )
            total, per_frame = ctx.run_udf(dataset=acquisition, udf=[SumUDF(dtype="uint64"), SumSigUDF()])
    np.savez(sys.argv[5], total=total["intensity"].data, per_frame=per_frame["intensity"].data)


if __name__ == "__main__":
    main()
