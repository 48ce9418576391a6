"""Train on given gradients by bitsandbytes' AdamW8bit on the CPU, and write what became of it.

The job names `gradients` (an .npz of NAME: [steps, ..]), `parameters` (an .npz of NAME: [..]), the
optimizer's numbers and `out`: NAME.path is [steps, ..], NAME.codes1 and .codes2 the
state after the first step, .map1 and .map2 what its codes mean.
"""

import json
import sys
from pathlib import Path

import bitsandbytes
import numpy as np
import torch


def main(job: dict) -> None:
    """Train every array by itself."""
    found = {"version": np.asarray(bitsandbytes.__version__)}
    gradients, start = np.load(job["gradients"]), np.load(job["parameters"])
    for name in gradients.files:
        parameter = torch.nn.Parameter(torch.from_numpy(start[name]))
        optimizer = bitsandbytes.optim.AdamW8bit([parameter], **job["optimizer"])
        steps, state = [], optimizer.state[parameter]
        for gradient in gradients[name]:
            parameter.grad = torch.from_numpy(gradient)
            optimizer.step()
            steps.append(parameter.detach().numpy().copy())
            if len(steps) == 1:
                for number in (1, 2):
                    found[f"{name}.codes{number}"] = state[f"state{number}"].numpy().copy()
                    found[f"{name}.map{number}"] = state[f"qmap{number}"].numpy()
        found[f"{name}.path"] = np.stack(steps)
    np.savez(job["out"], **found)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
