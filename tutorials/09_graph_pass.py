# %% [markdown]
# # A graph pass
#
# A model often says the same thing in a roundabout way. Two passes here make it shorter: one counts
# on patterns, the other walks over the graph. Then they run beside tinycomp's own, and the result
# is compared with the relay interpreter.

# %%
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

import tinycomp
from tinycomp.diagnostics import InternalError
from tinycomp.frontend.onnx import from_onnx
from tinycomp.ops import default_ops
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Atom, Binding, Call, Function, IRModule, all_functions
from tinycomp.relay.pass_infra import FunctionPass, PassContext, Sequential
from tinycomp.relay.passes.dead_code_elimination import DeadCodeElimination
from tinycomp.relay.pattern import Graph, Match, Rule, is_constant, is_op, rewrite, wildcard
from tinycomp.relay.visitor import ExprMutator
from tinycomp.testing.graph_builder import GraphBuilder

# %% [markdown]
# The model: its author wrote SiLU as x / (1 + exp(-x)), and negated twice.

# %%
g = GraphBuilder("roundabout", seed=0)
x = g.input("x", (4, 64))
h = g.linear(x, 64)
one = np.array(1, np.float32)
silu = g.op("Div", h, g.op("Add", g.op("Exp", g.op("Neg", h)), one))
twice = g.op("Neg", g.op("Neg", silu))
model = g.model(y=g.linear(twice, 16))
module = from_onnx(model)
print(module)


def operators(module: IRModule) -> Counter[str]:
    """How often each operator is called."""
    calls = [b.value for f in all_functions(module.main) for b in f.bindings]
    return Counter(
        c.op.name for c in calls if isinstance(c, Call) and not isinstance(c.op, Function)
    )


# %% [markdown]
# ## Rules with patterns
#
# A pattern describes a value by the operators that compute it. An object that occurs twice, here
# `value`, must be the same value at both places. The rule builds what replaces the match; its spans
# go along, so errors and profiles still name the ONNX nodes.

# %%
value = wildcard()
exp = is_op("exp")(is_op("negative")(value))
silu_by_hand = is_op("divide")(value, is_op("add")(exp, is_constant(1.0)))
negated = is_op("negative")(is_op("negative")(value))


def to_sigmoid(graph: Graph, match: Match) -> Atom:
    sigmoid = graph.builder.call("sigmoid", match[value])
    return graph.builder.call("multiply", match[value], sigmoid)


RULES = (
    Rule("silu", silu_by_hand, to_sigmoid),
    Rule("negate twice", negated, lambda graph, match: match[value]),
)


@dataclass(frozen=True)
class SimplifyRoundabouts(FunctionPass):
    """Applies `RULES` until none applies. A pass is a value; options would be its fields."""

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite(RULES, function, ctx.ops)


ctx = PassContext(default_ops())
shorter = SimplifyRoundabouts().run(module, ctx)
print(shorter)
assert operators(module)["negative"] == 3
assert operators(shorter)["sigmoid"] == 1
assert not operators(shorter).keys() & {"negative", "exp", "divide"}
assert SimplifyRoundabouts().run(shorter, ctx) is shorter, "a pass that changes nothing says so"

# %% [markdown]
# ## A mutator
#
# What depends on more than one place is easier as a walk. `ExprMutator` visits the bindings in
# order, with arguments that are rewritten already; a handler keeps the binding or emits others.
# This one computes `multiply(x, sigmoid(x))` in float64 and counts where it did so.


# %%
class WidenSilu(ExprMutator):
    """Products with a sigmoid are computed in float64."""

    widened = 0

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        arguments = [self.producer(atom) for atom in call.args]
        gated = any(
            p is not None
            and isinstance(p.value, Call)
            and getattr(p.value.op, "name", "") == "sigmoid"
            for p in arguments
        )
        if getattr(call.op, "name", "") != "multiply" or not gated:
            return self.keep(binding, call)
        self.widened += 1
        wide = [self.builder.call("cast", atom, dtype="float64") for atom in call.args]
        product = self.builder.call("multiply", *wide)
        return self.builder.call("cast", product, dtype=binding.var.type.dtype)


@dataclass(frozen=True)
class Widen(FunctionPass):
    """`WidenSilu` as a pass."""

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return WidenSilu(ctx.ops).run(function)


# %% [markdown]
# ## A sequence
#
# `Sequential` runs passes, times them, verifies what each one made, and prints on demand. A pass
# can be left out by name, and to find the one that breaks a model, `stop_after` ends early.

# %%
passes = Sequential((SimplifyRoundabouts(), Widen(), DeadCodeElimination()))
ctx = PassContext(default_ops(), print_after=frozenset({"Widen"}))
result = passes.run(module, ctx)
for timing in ctx.timings:
    print(timing)
assert [t.name for t in ctx.timings] == ["SimplifyRoundabouts", "Widen", "DeadCodeElimination"]
assert [t.changed for t in ctx.timings] == [True, True, False]
assert operators(result)["cast"] == 3
without = PassContext(default_ops(), disabled=frozenset({"Widen"}))
assert operators(passes.run(module, without)) == operators(shorter)

# %% [markdown]
# A pass that breaks a type is found at once, and named.


# %%
@dataclass(frozen=True)
class Wrong(FunctionPass):
    """Forgets that a value has a type."""

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        left_out = is_op("nn.relu", "sigmoid")(value)
        widened = lambda graph, match: graph.builder.call("cast", match[value], dtype="float64")  # noqa: E731
        return rewrite([Rule("wrong", left_out, widened)], function, ctx.ops)


message = ""
try:
    Sequential((Wrong(),)).run(shorter, PassContext(default_ops()))
except InternalError as error:
    message = "\n".join([str(error), *error.__notes__])
print(message)
assert "rule wrong replaced float32[4, 64] by float64[4, 64]" in message
assert "while running Wrong" in message

# %% [markdown]
# ## The meaning stays
#
# The interpreter runs relay before and after by NumPy references.

# %%
data = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
(before,), (after,) = evaluate(module, [data]), evaluate(result, [data])
np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)

# %% [markdown]
# ## Compiled with it
#
# A relay module can be compiled as it is. To have passes run on whatever model is compiled, pass
# them in an extension; they come before tinycomp's own. Its key is for the caches on disk.

# %%
extension = tinycomp.Extension(passes=(SimplifyRoundabouts(),), key="tutorial 9, version 1")
plain, compiled = tinycomp.compile(model), tinycomp.compile(model, extension=extension)
modules = {"without": plain, "with the pass": compiled, "from relay": tinycomp.compile(result)}
for name, built in modules.items():
    (y,) = built.run({"x": data}).values()
    np.testing.assert_allclose(y, before, rtol=1e-4, atol=1e-5)
    text = built.ir("relay")
    print(f"{name:14} {text.count('exp(')} exp, {text.count('sigmoid(')} sigmoid")
assert "sigmoid" in compiled.ir("relay")
assert "sigmoid" not in plain.ir("relay")
