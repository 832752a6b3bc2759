"""The server that lets others query a model over HTTP: `python -m dassl_blackbox.serve`."""
