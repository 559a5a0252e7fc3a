"""Tile programs: asynchronous kernels (TMA, wgmma, roles) as data, with an interpreter.

`nodes` is the IR, `layout` how tiles lie in memory and registers, `interpreter` runs programs on
the CPU and finds races, `verify` checks the limits of the machine, `printer` writes them as text.
"""
