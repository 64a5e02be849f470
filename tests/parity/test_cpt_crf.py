"""The conditional random field against the original's: losses, gradients, best tags."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops

from mindplm.nn.crf import Crf, best_tags, legal_steps
from mindplm.nn.values import from_arrays

PATHS = golden_dirs("cpt", "crf.npz")
NAMES = {"steps": "trans_m", "begin": "start_scores", "end": "end_scores"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_losses_gradients_and_tags_agree(path):
    golden = dict(np.load(path))
    facts = json.loads(path.with_suffix(".json").read_text())
    crf = Crf(len(facts["labels"]), ms.float32)
    weights = {ours: golden[f"param.{theirs}"] for ours, theirs in NAMES.items()}
    from_arrays(list(crf.get_parameters()), weights, "crf")
    real = golden["mask"].astype(np.float32)
    columns = [Tensor(golden["features"]), Tensor(golden["gold"].astype(np.int32)), Tensor(real)]

    def total(features, gold, mask):
        losses = crf(ops.log_softmax(features, -1), gold, mask)
        return losses.sum(), losses

    compute = ops.value_and_grad(total, 0, list(crf.get_parameters()), has_aux=True)
    (_, losses), (features, grads) = compute(*columns)
    np.testing.assert_allclose(losses.asnumpy(), golden["nll"], rtol=1e-5, atol=1e-5)
    # The recorded gradients are those of the mean over rows, or of their sum.
    scale = np.linalg.norm(golden["grad_features"]) / np.linalg.norm(features.asnumpy())
    assert min(abs(scale - 1), abs(scale - 1 / len(real))) < 1e-4
    np.testing.assert_allclose(features.asnumpy() * scale, golden["grad_features"], atol=1e-5)
    for weight, grad in zip(crf.get_parameters(), grads):
        wanted = golden[f"grad.{NAMES[weight.name]}"]
        np.testing.assert_allclose(grad.asnumpy() * scale, wanted, atol=1e-5)
    legal = legal_steps(facts["labels"])
    allowed = {(i, j) for i, j in zip(*np.nonzero(legal[:-1] == 0))}
    num = len(facts["labels"])
    theirs = {tuple(pair) for pair in facts["allowed_transitions"] if max(pair) < num}
    assert allowed == theirs
    for row, mask, wanted, score in zip(
        golden["log_softmax"],
        golden["mask"],
        facts["viterbi_unpadded"],
        golden["viterbi_score"],
    ):
        tags, found = best_tags(row[mask], *weights.values(), legal)
        assert tags == wanted and found == pytest.approx(float(score), rel=1e-4)
