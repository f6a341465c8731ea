"""Make torch_rnn.npz: outputs and gradients of torch's recurrent layers in float64, with random non-zero biases.

Needs the ``bench`` extra:  python tests/golden/make_torch_rnn.py
"""

from pathlib import Path

import numpy as np
import torch

T, B, D, H = 6, 3, 4, 5
LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def main() -> None:
    torch.manual_seed(0)
    arrays = {}
    for name, layer in LAYERS.items():
        rnn = layer(D, H).double()
        xs = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
        state = [
            torch.randn(1, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2 if name == "lstm" else 1)
        ]
        ys, final = rnn(xs, tuple(state) if name == "lstm" else state[0])
        final = list(final) if name == "lstm" else [final]
        weights = [torch.randn_like(out) for out in [ys, *final]]
        sum((out * w).sum() for out, w in zip([ys, *final], weights, strict=True)).backward()
        record = {"xs": xs, "dxs": xs.grad, "ys": ys, "cotangent_ys": weights[0]}
        for letter, s, f, w in zip(letters, state, final, weights[1:], strict=True):
            record |= {f"{letter}0": s[0], f"d{letter}0": s.grad[0], f"{letter}": f[0], f"cotangent_{letter}": w[0]}
        for parameter in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            record |= {parameter: getattr(rnn, parameter), f"d{parameter}": getattr(rnn, parameter).grad}
        arrays |= {f"{name}.{field}": value.detach().numpy() for field, value in record.items()}
    np.savez_compressed(Path(__file__).with_name("torch_rnn.npz"), **arrays)
    print(f"torch {torch.__version__}: {len(arrays)} arrays")


if __name__ == "__main__":
    main()
