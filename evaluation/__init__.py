"""Numbers about exported meshes. The commands are mesh_visualize.py, clipscore/compute.py and shapeworld.py."""
