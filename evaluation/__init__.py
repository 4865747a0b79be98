"""Numbers about exported meshes: the package `triplaneturbo.evaluation`, and the programs of this folder.

The programs are mesh_visualize.py, clipscore/compute.py and shapeworld.py.
"""
