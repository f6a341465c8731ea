"""README.md: its Python runs as it stands, its table of cells is complete; and links in all guides lead somewhere."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import seqjax

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")]
README = GUIDES[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def namespace():
    """What the Python of the README defines."""
    names = {"__name__": "readme"}
    for block in re.finditer(r"^```python\n(.*?)^```$", README, re.M | re.S):
        above = README.count("\n", 0, block.start(1))
        exec(compile("\n" * above + block[1], "README.md", "exec"), names)  # errors name the README's lines
    return names


def test_python_runs(namespace):
    assert namespace["gradients"].w_h.shape == namespace["params"].w_h.shape
    assert namespace["logits"].shape == (4, 11, 50)


def test_own_cell_has_the_right_gradient(namespace):
    leaky, xs, lengths = (namespace[name] for name in ("leaky", "xs", "lengths"))

    def loss(params, implementation):
        _, ys = seqjax.unroll(leaky, params, xs, lengths=lengths, implementation=implementation)
        return (ys**2).sum()

    params = leaky.init(jax.random.key(2), xs.shape[-1], 8)
    scan, fused = (jax.grad(loss)(params, implementation) for implementation in ("scan", "fused"))
    assert np.abs(fused.b_leak).max() > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fused, scan)


def test_table_of_cells_is_complete():
    table = README.partition("### Cells\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `([\w ]+)` \|$", table, re.M))
    assert rows == {name: " ".join(cell.axes._fields) for name, cell in seqjax.CELLS.items()}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide):
    text = guide.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert "://" in target or (guide.parent / path).exists(), target
        assert not target.startswith("#") or anchor in anchors, target
