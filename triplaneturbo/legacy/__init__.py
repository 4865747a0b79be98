"""Everything about the originals' names: options, registered names, YAML files, checkpoints, quirks.

They are recognised and translated when they are read; nothing else in the project speaks their dialect. YAML is
translated one way, state dicts both ways.
"""
