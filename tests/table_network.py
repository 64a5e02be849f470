"""A network of three lines for tests of the policies, and the batch they are given."""

from __future__ import annotations

import numpy as np

from mindplm.generate.search import Feed, Plan

VOCAB, BOS, EOS, UNK, NEWLINE = 12, 6, 7, 1, 4


def plan_of(*blanks, ext=((2, 1), (10, 3)), allowed=None, unk=None) -> Plan:
    num = len(blanks)
    return Plan(
        blanks=blanks,
        vocab_size=VOCAB,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNK,
        newline_id=NEWLINE,
        ext_ids=np.array([base for base, _ in ext], np.int32),
        ext_sub=np.array([sub for _, sub in ext], np.int32),
        allowed_ext=np.ones((num, len(ext)), bool) if allowed is None else np.array(allowed),
        allowed_unk=np.zeros(num, bool) if unk is None else np.array(unk),
    )


class Table:
    """A network whose scores depend on the token just fed, its segment and its position."""

    def __init__(self, seed: int, num_ext: int = 2, used=None):
        rng = np.random.default_rng(seed)
        self.scores = rng.normal(size=(VOCAB, 4, 20, VOCAB + num_ext)).astype(np.float32) * 2
        if used is not None:
            unused = [c for c in range(VOCAB + num_ext) if c not in used]
            self.scores[..., unused] = -60

    def __call__(self, feed: Feed) -> np.ndarray:
        return self.scores[feed.ids, (feed.segments + feed.subs) % 4, feed.positions]


def drive(policy, network) -> list[list[tuple[int, int]]]:
    while policy.advance(network(policy.feed())) is not None:
        pass
    return policy.results()
