"""How released files store a model: names, containers and encodings, read without torch.

Every file is compared with one list of in-memory names, that of :mod:`moshi_pipe.models.layout`.
What a file is, its content tells, never its name.
"""
