exec bash "$(dirname "$0")/../main.sh" JOLT "$@"
