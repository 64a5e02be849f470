"""GPT-1 against the original's arrays and its HF port's: states, losses, gradients, tasks."""

from __future__ import annotations

import json
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from mindplm.config import OptimConfig
from mindplm.data.gpt1_tasks import Marks, arrays, part_room, sequences, soft_scores
from mindplm.models.gpt1.cell import TaskLoss, TaskModel, network
from mindplm.models.gpt1.config import Gpt1Config, parameter_shapes, rules
from mindplm.nn.causal import CausalLoss, CausalModel
from mindplm.nn.values import load_model
from mindplm.train.optim import Adam
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, Report, TrainStep
from mindplm.weights.rules import to_ours, to_theirs

CLOSE = {"rtol": 2e-4, "atol": 2e-4}
HEAD = ("clf.weight", "clf.bias")


def tags(pattern: str) -> list[str]:
    """Tags of the golden files of this kind."""
    head, _, tail = pattern.partition("*")
    return [p.name[len(head) : -len(tail)] for p in golden_dirs("gpt1", pattern)]


def golden(name: str):
    (path,) = golden_dirs("gpt1", name)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


def config_of(shape: tuple[int, ...], max_len: int, heads: int, layers: int, **more) -> Gpt1Config:
    vocab, hidden = shape
    sizes = {"num_heads": heads, "num_layers": layers, "max_len": max_len}
    return Gpt1Config(vocab_size=vocab, hidden_size=hidden, ffn_size=4 * hidden, **sizes, **more)


def layers_of(names) -> int:
    parts = [part for name in names for part in name.split(".") if part.isdigit()]
    return 1 + max(map(int, parts))


@cache
def hf_model(tag: str, position_classes: bool = False) -> tuple[CausalModel, Gpt1Config]:
    theirs = golden(f"hf_weights_{tag}.safetensors")
    table = theirs["transformer.tokens_embed.weight"]
    heads = golden(f"tf_run_{tag}.json")["config"]["n_head"]
    config = config_of(
        table.shape,
        len(theirs["transformer.positions_embed.weight"]),
        heads,
        layers_of(n for n in theirs if ".h." in n),
        position_classes=position_classes,
    )
    model = network(config)
    body = {name: array for name, array in theirs.items() if name not in HEAD}
    load_model(model, to_ours(rules(config, "hf"), body, parameter_shapes(config)), tag)
    return model, config


def whole(ids: np.ndarray) -> list[Tensor]:
    """Columns of rows that are one document each."""
    order = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return [Tensor(np.asarray(a, np.int32)) for a in (ids, order, np.ones_like(ids))]


# --- the HF port ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", tags("hf_forward_*.npz"))
def test_every_state_and_both_kinds_of_logits(tag):
    wanted = golden(f"hf_forward_{tag}.npz")
    model, _ = hf_model(tag)
    inputs = golden(f"tf_forward_{tag}.npz")
    ids, mask = (inputs[n].reshape(-1, *inputs[n].shape[2:]) for n in "XM")
    ids = ids[..., 0]

    # A function of its own: ms.jit of the bound method would stand for the whole cell.
    @ms.jit
    def run(*columns):
        return model.states(*columns)

    states = run(*whole(ids))
    for number, state in enumerate(states):
        np.testing.assert_allclose(state.asnumpy(), wanted[f"hidden_{number}"], **CLOSE)
    flat = states[-1].reshape((-1, states[-1].shape[2]))
    tokens = model.project(flat).asnumpy().reshape(*ids.shape, -1)
    np.testing.assert_allclose(tokens, wanted["lm_logits_tokens_only"], **CLOSE)
    full, _ = hf_model(tag, True)
    both = full.project(flat).asnumpy().reshape(*ids.shape, -1)
    np.testing.assert_allclose(both[:, :-1], wanted["lm_logits_full_matrix"], **CLOSE)
    nll = CausalLoss(model).losses(flat, Tensor(np.roll(ids, -1, 1).reshape(-1), ms.int32))
    nll = nll.asnumpy().reshape(ids.shape)[:, :-1] * mask[:, 1:]
    losses = nll.sum(1) / mask[:, 1:].sum(1)
    np.testing.assert_allclose(losses, wanted["lm_losses_tokens_only"], **CLOSE)
    rows = np.arange(len(ids))
    pooled = states[-1].asnumpy()[rows, wanted["pool_index"]]
    np.testing.assert_allclose(pooled, wanted["clf_hidden"], **CLOSE)


@pytest.mark.parametrize("tag", tags("lm_*.npz"))
def test_the_language_model_loss_and_every_gradient(tag):
    wanted = golden(f"lm_{tag}.npz")
    model, config = hf_model(tag)
    ids, labels = wanted["input_ids"], wanted["labels"]
    targets = np.concatenate([labels[:, 1:], np.full((len(labels), 1), -100)], 1)
    columns = whole(ids)
    columns += [columns[1], Tensor(targets.astype(np.int32))]
    loss, weights = CausalLoss(model), list(model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    value, grads = ms.jit(ops.value_and_grad(mean, None, weights))(*columns)
    np.testing.assert_allclose(float(value.asnumpy()), wanted["loss"], rtol=1e-5)
    logits = model.project(model(*columns[:3]).reshape((-1, config.hidden_size)))
    np.testing.assert_allclose(
        logits.asnumpy().reshape(wanted["logits"].shape), wanted["logits"], **CLOSE
    )
    ours = {w.name: g.asnumpy() for w, g in zip(weights, grads)}
    theirs = to_theirs(rules(config, "hf"), ours)
    for name, array in wanted.items():
        if name.startswith("grad."):
            np.testing.assert_allclose(theirs[name[5:]], array, rtol=1e-3, atol=2e-5, err_msg=name)


# --- the original ---------------------------------------------------------------------------------


def from_tf(arrays: dict[str, np.ndarray], config: Gpt1Config) -> dict[str, np.ndarray]:
    """The original's parameters as they are in memory, under our names."""
    cut = config.vocab_size
    theirs = {n: a[0] if a.ndim == 3 else a for n, a in arrays.items() if not n.startswith("clf")}
    joined = theirs.pop("we")
    theirs = {"h." + n[1:] if n[0] == "h" else n: a for n, a in theirs.items()}
    theirs.update(tokens=joined[:cut], positions=joined[cut:])
    ours = to_ours(rules(config, "openai"), theirs, parameter_shapes(config))
    return {**ours, "head.weight": arrays["clf.w"].T, "head.bias": arrays["clf.b"]}


def tf_task(tag: str) -> tuple[TaskLoss, Gpt1Config]:
    settings = golden(f"tf_run_{tag}.json")
    c = settings["config"]
    config = config_of(
        (c["n_vocab"] + settings["n_special"], c["n_embd"]), c["n_ctx"], c["n_head"], c["n_layer"],
        position_classes=True,
    )  # fmt: skip
    params = golden(f"tf_params_{tag}.npz")
    outputs = params["clf.b"].shape[0]
    task = TaskModel(network(config), outputs, choose=True)
    load_model(task, from_tf(params, config), tag)
    return TaskLoss(task, lm_weight=c["lm_coef"]), config


def tf_columns(tag: str) -> list[Tensor]:
    inputs = golden(f"tf_forward_{tag}.npz")
    ids, length = inputs["X"][..., 0], inputs["M"].sum(-1)
    extract = (ids == golden(f"tf_run_{tag}.json")["clf_token"]).argmax(-1)
    return [Tensor(np.asarray(a, np.int32)) for a in (ids, length, extract, inputs["Y"])]


def gradients(loss: TaskLoss, columns: list[Tensor]):
    """L3, the gradients, and the parts of the loss: scores, L2 and L1 by sequence."""
    weights = list(loss.model.trainable_params())

    def mean(ids, length, extract, label):
        hidden = loss.model.hidden(ids, length)
        scores = loss.model.scores(hidden, extract)
        parts = scores, loss.supervised(scores, label), loss.language(hidden, ids, length)
        total, count = loss(ids, length, extract, label)
        return total / count, *parts

    compute = ms.jit(ops.value_and_grad(mean, None, weights, has_aux=True))
    (value, *parts), grads = compute(*columns)
    grads = {w.name: g.asnumpy() for w, g in zip(weights, grads)}
    return float(value.asnumpy()), grads, [part.asnumpy() for part in parts]


@pytest.mark.parametrize("tag", tags("tf_forward_*.npz"))
def test_the_originals_losses_and_gradients(tag):
    loss, config = tf_task(tag)
    columns = tf_columns(tag)
    wanted = golden(f"tf_forward_{tag}.npz")
    value, grads, (scores, supervised, language) = gradients(loss, columns)
    np.testing.assert_allclose(scores, wanted["clf_logits"], **CLOSE)
    np.testing.assert_allclose(language.reshape(-1), wanted["lm_losses"], **CLOSE)
    np.testing.assert_allclose(supervised, wanted["clf_losses"], **CLOSE)
    np.testing.assert_allclose(value, wanted["total_loss"], rtol=1e-5)
    theirs = from_tf(golden(f"tf_grads_{tag}.npz"), config)
    assert set(theirs) == set(grads)
    for name, array in theirs.items():
        np.testing.assert_allclose(grads[name], array, rtol=1e-3, atol=2e-5, err_msg=name)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    np.testing.assert_allclose(norm, wanted["global_grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("tag", tags("tf_run_*.json"))
def test_the_originals_optimizer_steps(tag):
    """Its losses before each update, and the weights after one and after six."""
    run = golden(f"tf_run_{tag}.json")
    c = run["config"]
    loss, config = tf_task(tag)
    total = c["total"]
    optim = OptimConfig(
        lr=c["lr"],
        weight_decay=c["l2"],
        decay="all" if c["vector_l2"] else "tables",
        decay_corrected=True,
        eps_corrected=False,
        schedule=c["sched"].split("_")[-1],
        schedule_form="gpt1",
        warmup_steps=round(c["warmup"] * total),
        clip_norm=c["clip"],
    )
    adam = Adam(list(loss.model.trainable_params()), optim)
    step = TrainStep(loss, adam, clip_norm=optim.clip_norm, num_micro=1)
    columns = {str(i): column.asnumpy() for i, column in enumerate(tf_columns(tag))}
    batch = len(columns["0"])
    grads = from_tf(golden(f"tf_grads_{tag}.npz"), config)
    for number, wanted in enumerate(run["loss_before_each_update"]):
        rates = adam.rates(learning_rate(optim, number, total), number)
        report = Report.of(step(columns, set(), Numbers(batch, [rates], number)).asnumpy())
        np.testing.assert_allclose(report.loss, wanted, rtol=2e-4)
        if golden_dirs("gpt1", f"tf_params_{tag}_after{number + 1}.npz"):
            theirs = from_tf(golden(f"tf_params_{tag}_after{number + 1}.npz"), config)
            for weight in adam.weights:
                # Where a gradient is nothing but rounding, Adam makes a step of it: so weights
                # are compared by norm, and those without a gradient by the way they can have gone.
                array = theirs[weight.name]
                off = np.abs(weight.asnumpy() - array)
                if np.linalg.norm(grads[weight.name]) < 1e-5:
                    assert off.max() <= 2 * c["lr"] * (number + 1), weight.name
                else:
                    assert np.linalg.norm(off) <= 2e-4 * np.linalg.norm(array), weight.name


# --- the four tasks -------------------------------------------------------------------------------

TASKS = [(tag, task) for tag in tags("tasks_*.npz") for task in golden(f"tasks_{tag}.json")["raw"]]


@pytest.mark.parametrize(("tag", "task"), TASKS)
def test_task_inputs_losses_and_gradients(tag, task):
    facts, wanted = golden(f"tasks_{tag}.json"), golden(f"tasks_{tag}.npz")
    wanted = {n.split(".", 1)[1]: a for n, a in wanted.items() if n.startswith(task + ".")}
    marks = Marks(facts["start"], facts["delimiter"], facts["extract"])
    examples = []
    for raw in facts["raw"][task]:
        parts = [raw] if isinstance(raw[0], int) else raw
        if task == "multiple_choice":
            parts = [raw[0], *raw[1]]
        examples.append(sequences(task, parts, marks))
    columns = arrays(examples, marks, facts["n_ctx"])
    assert np.array_equal(columns["ids"].reshape(-1, facts["n_ctx"]), wanted["X"][..., 0])
    assert np.array_equal(columns["length"].reshape(-1), wanted["M"].sum(-1))
    choose, regression = task == "multiple_choice", task == "similarity"
    model, _ = hf_model(tag, True)
    head = TaskModel(model, len(wanted["b"]), choose=choose)
    head.head.weight.set_data(Tensor(wanted["W"].T.copy()))
    head.head.bias.set_data(Tensor(wanted["b"]))
    loss = TaskLoss(head, lm_weight=facts["lambda_"], regression=regression)
    label = wanted["Y"] if regression else wanted["Y"].astype(np.int32)
    tensors = [*map(Tensor, columns.values()), Tensor(label)]
    value, grads, (scores, *parts) = gradients(loss, tensors)
    np.testing.assert_allclose(scores, wanted["logits"], **CLOSE)
    means = [part.mean() for part in parts]
    np.testing.assert_allclose(means, [wanted["L2"], wanted["L1"]], rtol=1e-5)
    np.testing.assert_allclose(value, wanted["L3"], rtol=1e-5)
    fused = np.concatenate([grads[f"blocks.0.attn.{n}.weight"] for n in "qkv"]).T
    for array, name in (
        (grads["head.weight"].T, "grad_W"),
        (grads["embed.weight"], "grad_tokens"),
        (grads["positions.weight"], "grad_positions"),
        (fused, "grad_h0_c_attn"),
    ):
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("path", golden_dirs("gpt1", "stsb_labels*.json"), ids=lambda p: p.stem)
def test_scores_as_shares_of_classes(path):
    facts = json.loads(path.read_text())
    np.testing.assert_allclose(soft_scores(facts["labels"]), facts["encoded"], atol=1e-6)


@pytest.mark.parametrize("path", golden_dirs("gpt1", "transform_*.json"), ids=lambda p: p.stem)
def test_story_cloze_arrays(path):
    from conftest import SHARED_DATA

    from mindplm.tokenizers.bpe import SPECIALS, BpeTokenizer

    if SHARED_DATA is None or not (SHARED_DATA / "gpt1").is_dir():
        pytest.skip("no folder data/gpt1 with the vocabulary")
    pytest.importorskip("spacy")
    facts = json.loads(path.read_text())
    tokenizer = BpeTokenizer.from_file(SHARED_DATA / "gpt1").with_specials()
    marks = Marks(*(tokenizer.pieces[name] for name in SPECIALS))
    assert part_room(facts["n_ctx"], 2) == facts["max_len"]
    examples = [
        sequences(
            "multiple_choice",
            [tokenizer.encode(text)[: facts["max_len"]] for text in raw],
            marks,
        )
        for raw in facts["raw"]
    ]
    columns = arrays(examples, marks, facts["n_ctx"])
    wanted = np.array(facts["X"])
    assert np.array_equal(columns["ids"], wanted[..., 0])
    places = tokenizer.vocab_size + np.arange(facts["n_ctx"])
    assert np.array_equal(wanted[..., 1], np.broadcast_to(places, wanted.shape[:-1]))
    real = np.arange(facts["n_ctx"]) < columns["length"][..., None]
    assert np.array_equal(real, np.array(facts["M"]) == 1)
