#!/usr/bin/env bash
# Make .venv, install secure_fed, run the main job on the embedded data, and say where the report lies.
# Arguments are overrides: ./scripts/quickstart.sh privacy.epsilon=3
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment ""
exec .venv/bin/secure-fed run "$@"
