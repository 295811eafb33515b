"""What only a process that imports torch can say: `python -m motley.checkup.torch_build`."""

from __future__ import annotations

import json


def main() -> None:
    """Write one JSON object to standard output."""
    import torch

    accelerators = [
        name
        for name, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
        )
        if there
    ]
    facts = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "accelerators": ", ".join(accelerators) or "none",
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
