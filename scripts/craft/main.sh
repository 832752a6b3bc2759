#!/bin/bash
exec bash "$(dirname "$0")/../main.sh" CraFT "$@"
