#!/bin/bash
# bash scripts/jolt/main.sh caltech101 vit_b16 16 [KEY VALUE ...]
exec bash "$(dirname "$0")/../main.sh" JOLT "$@"
