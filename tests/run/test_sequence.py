"""Whole sequences on tiny models, in this process (Ray Train's local mode)."""

from __future__ import annotations


def test_smoke(commands, flags, tmp_path):
    for m in ("gain_inf",):
        args = flags(tmp_path / "store", m, "t5")
        done = commands.run(args)
        print(done.code, done.seconds, done.out, done.err)
        done = commands.run(args)
        print(done.code, done.seconds, done.out, done.err)
        print(sorted(m for m in done.modules if m.count(".") < 1))
