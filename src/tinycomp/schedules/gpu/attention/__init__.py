"""Fused attention: one online softmax, and three ways to do the products around it."""
