"""What users bring: the zoo's directory, adapters and their configs, texts, tasks.

In come paths; out go checked values, or an error that names the file. May import the loader and the shards only.
"""
