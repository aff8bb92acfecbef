"""Worlds made of what people already have: one file for each kind, found by its name as every other world is.

    worlds: {lake: {world: gymnasium, args: {env: FrozenLake-v1, actions: [left, down, right, up]}}}

An adapter exports `World` by the contract in envs/__init__.py and adds these rules:

- `facts["reward"]` is the number that the peer's own code gives, `facts["parts"]` its named parts, `facts["rewards"]`
  those by turn, each where there is one; the reward `fact` pays it. What `solved` means is said in the adapter.
- The user's functions and classes are trusted as the run's own code. What the policy wrote is only handed to them as
  text: no adapter evaluates it outside a sandbox.
- What such code raises is EnvCrashed in playing and JudgeFailed in judging, and never a reward of 0. What is wrong with
  the configuration is one sentence when the world is built.
- `demonstrate` raises ValueError, with the reason, where nobody knows the right answer: `rl check` then says so.

`shared` holds what several of them need and is no world.
"""
