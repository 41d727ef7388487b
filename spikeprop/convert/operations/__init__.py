"""The operations that convert: tables from a module type or function name to what it makes of the values of the graph.

Functions of torch, methods of tensors and modules that mean the same share one entry; what is in no table is refused.
"""
