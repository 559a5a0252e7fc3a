"""Lowering passes of the loop IR: each file offers one `pass(func) -> func`."""
