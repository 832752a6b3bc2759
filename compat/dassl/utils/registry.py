class Registry:
    """Names to classes or functions.

    `@REGISTRY.register()` above a definition, `REGISTRY.get(name)` to find it again.
    """

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def register(self, obj=None, force=False):
        """Enter `obj` under its `__name__`; without `obj`, a decorator.

        A name already taken is a KeyError unless `force`.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        if obj.__name__ in self._obj_map and not force:
            raise KeyError(f'"{obj.__name__}" is already registered in the {self._name} registry')
        self._obj_map[obj.__name__] = obj
        return obj

    def get(self, name):
        if name not in self._obj_map:
            raise KeyError(f'"{name}" is not registered in the {self._name} registry')
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)
