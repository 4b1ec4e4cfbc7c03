"""What runs in a filter host: user code's side of the wire.

A worker starts ``__main__.py`` by its path with the Python of any environment that has numpy, cloudpickle and
msgpack. Everything here imports only those, the standard library and this package's other light modules.
"""
