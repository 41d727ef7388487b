"""Vendors' simulators as witnesses of our integers, each in an environment of its own: one module a vendor, and its worker."""
