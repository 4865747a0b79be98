"""Reading and writing model files: safely, atomically, and with errors that say what to do."""
