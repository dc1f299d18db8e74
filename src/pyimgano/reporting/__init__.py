"""Forwards names that scripts import from here; docs/compatibility.md lists them."""
