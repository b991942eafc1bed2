"""What models exist, and what crosses the process border.

The leaf both sides share: imports only the standard library, pydantic, yaml and msgspec; never `gateway`, `workers`,
torch or Ray. The YAML files beside this module are the zoo that ships with Aviary.
"""
