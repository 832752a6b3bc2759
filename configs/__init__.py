"""The YAMLs of data sets and trainers. `python -m dassl_blackbox.configs DIR` copies them."""
